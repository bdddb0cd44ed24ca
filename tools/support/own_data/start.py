"""The weights to start from: what they are, and what of them fits."""

import os
from dataclasses import dataclass

from backbone.weights.checkpoint import CheckpointError, class_names, meta_in
from backbone.weights.fetch import local_file
from backbone.weights.layout import FAMILIES, KINDS, Description, recognise
from backbone.weights.read import read_checkpoint, state_dict_in
from backbone.weights.write import progress
from support.own_data.pieces import Start

SCHOOLED = 5000
"""Iterations after which the first layers of a network are worth keeping as they are."""

WIDTH_OF = {256: True, 64: False, 96: False}
"""Whether a neck of so many channels is that of the paper or that of `_base_/*_narrow.py`."""


@dataclass(frozen=True)
class Weights:
    """A file, and what it says of itself."""

    file: str
    description: Description
    classes: list[str]
    iterations: int | None
    neck: int | None

    @classmethod
    def read(cls, file: str) -> 'Weights':
        """Read a file of any kind.

        Raises:
            CheckpointError: it is unsafe, damaged, or none of a backbone that is known here.
        """
        path = local_file(file)
        checkpoint = read_checkpoint(path)
        state_dict = state_dict_in(checkpoint, path)
        description = recognise(state_dict)
        if not description.arch:
            sizes = ', '.join(size.letter for family in FAMILIES for size in family.sizes.values())
            raise CheckpointError(f'{file}: {description}; --start takes RMT of the sizes {sizes}')
        conv = state_dict.get('neck.fpn_convs.0.conv.weight')
        return cls(
            file if '://' in file else os.path.abspath(file),
            description,
            class_names(meta_in(checkpoint)),
            progress(checkpoint).get('iter'),
            None if conv is None else conv.shape[0],
        )

    @property
    def head(self) -> str:
        """The head it has, as recipes name it; empty for a backbone or a head not known here."""
        kind = self.description.kind
        if kind == 'other':  # told from the others by what it lacks
            kind = 'faster_rcnn'
        return kind if kind in ('mask_rcnn', 'faster_rcnn', 'retinanet', 'fpn', 'upernet') else ''

    def fits(self, head: str) -> bool:
        """Whether neck and head fit a config of that head, the class layers apart."""
        return self.head == head and (self.neck in WIDTH_OF or head == 'upernet')

    @property
    def full_width(self) -> bool:
        return WIDTH_OF.get(self.neck, True)

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
