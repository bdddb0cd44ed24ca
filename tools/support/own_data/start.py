"""The weights to start from: what they are, and what of them fits."""

import os
from dataclasses import dataclass

from backbone.weights.checkpoint import CheckpointError, class_names, meta_in
from backbone.weights.families import RMT_FILES
from backbone.weights.fetch import local_file
from backbone.weights.layout import KINDS, Description, recognise
from backbone.weights.read import read_checkpoint, state_dict_in
from backbone.weights.write import progress
from support.config import from_file
from support.own_data.pieces import Start
from support.own_data.recipe import BASES, MAP_HEADS
from support.paths import ROOT

SCHOOLED = 5000
"""Iterations after which the first layers of a network are worth keeping as they are."""


NECK, SEGMENTOR = 'neck.fpn_convs.0.conv.weight', 'decode_head.conv_seg.weight'


def widths(head: str) -> dict[int, bool]:
    """How wide the neck of a head's bases is, else the head: whether so in the paper's base."""
    folder = 'seg_configs' if head in MAP_HEADS else 'det_configs'
    found = {}
    for base in (f'{head}_narrow', BASES[head]):
        model = from_file(ROOT / folder / '_base_' / f'{base}.py').model
        width = model.neck.out_channels if 'neck' in model else model.decode_head.channels
        found[width] = base == BASES[head]
    return found


@dataclass(frozen=True)
class Weights:
    """A file, and what it says of itself; its width is that of :func:`widths`."""

    file: str
    description: Description
    classes: list[str]
    iterations: int | None
    width: int | None

    @classmethod
    def read(cls, file: str) -> 'Weights':
        """Read a file of any kind.

        Raises:
            CheckpointError: it is unsafe, damaged, or none of an RMT of the table's sizes.
        """
        path = local_file(file)
        checkpoint = read_checkpoint(path)
        state_dict = state_dict_in(checkpoint, path)
        description = recognise(state_dict)
        if not description.arch or description.family is not RMT_FILES:
            sizes = ', '.join(size.letter for size in RMT_FILES.sizes.values())
            raise CheckpointError(f'{file}: {description}; --start takes RMT of the sizes {sizes}')
        necks = [state_dict[name].shape[0] for name in [NECK] if name in state_dict]
        heads = [state_dict[name].shape[1] for name in [SEGMENTOR] if name in state_dict]
        return cls(
            file if '://' in file else os.path.abspath(file),
            description,
            class_names(meta_in(checkpoint)),
            progress(checkpoint).get('iter'),
            next(iter(necks + heads), None),
        )

    @property
    def head(self) -> str:
        """The head it has, as recipes name it; empty for a backbone or a head not known here."""
        kind = self.description.kind
        if kind == 'other':  # told from the others by what it lacks
            kind = 'faster_rcnn'
        return kind if kind in BASES else ''

    def fits(self, head: str) -> bool:
        """Whether neck and head fit a config of that head, the class layers apart."""
        return self.head == head and self.width in widths(head)

    @property
    def full_width(self) -> bool:
        return widths(self.head)[self.width]

    @property
    def schooled(self) -> bool:
        return self.iterations is None or self.iterations >= SCHOOLED

    def same_classes(self, classes: list[str]) -> bool:
        if self.classes:
            return self.classes == classes
        return self.description.num_classes == len(classes)


def plan(weights: Weights | None, head: str, classes: list[str]) -> tuple[str, Start]:
    """How a training starts: for the recipe, and for the config."""
    if weights is None:
        return 'nothing', Start()
    kind = KINDS[weights.description.kind].label
    if weights.fits(head):
        if weights.same_classes(classes):
            why = f'{weights.description}, of the same classes: all of it'
            return 'again', Start('load_from', weights.file, why)
        number = weights.description.num_classes
        why = f'{weights.description}; the layers that tell its {number} classes apart start anew'
        return 'detector', Start('load_from', weights.file, why, own_classes=True)
    what = 'the backbone' if weights.description.is_backbone else f'of a {kind}, the backbone alone'
    return 'backbone', Start('pretrained', weights.file, f'{weights.description}: {what}')
