"""Label maps: the numbers in them, and how mmseg lists them."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from mmengine.config import Config
from PIL import Image

from support.checks import listing
from support.checks.dataset import Leaf, leaves, some
from support.checks.heads import heads
from support.cli import UserError


def ignored_labels(cfg: Config, leaf: Leaf) -> set[int]:
    """The numbers that stand for "no class"."""
    found = {255, leaf.config.get('ignore_index', 255)}
    found |= {head.get('ignore_index', 255) for _, head in heads(cfg.model)}
    return found | {getattr(step, 'ignore_index', 255) for step in leaf.steps}


def number_of_labels(cfg: Config, leaf: Leaf) -> int | None:
    """How many classes the label maps may have: a detector's are those of its semantic head."""
    if 'BaseSegDataset' in leaf.family:
        return len(leaf.classes) if leaf.classes else None
    return _find(cfg.model, 'semantic_head').get('num_classes')


def _find(node: object, name: str) -> dict:
    """The first dict of that key, at any depth; an empty one where there is none."""
    if not isinstance(node, dict):
        return {}
    if isinstance(node.get(name), dict):
        return node[name]
    return next((found for value in node.values() if (found := _find(value, name))), {})


@dataclass
class Labels:
    """What is in the label maps of a data set."""

    leaf: Leaf
    number: int | None
    ignored: set[int]
    seen: set[int] = field(default_factory=set)

    def of(self, results: dict) -> set[int]:
        """The labels of a label map as it is loaded; checks them, and it against its image."""
        path, labels = results['seg_map_path'], results['gt_seg_map']
        where = f'{self.leaf.key}: {path}'
        if labels.ndim != 2:
            raise UserError(
                f'{where}: an image of {labels.shape[-1]} channels, not a label map; it must have '
                'one channel, whose values are the numbers of the classes'
            )
        size = results['ori_shape'][:2]
        if labels.shape != size:
            raise UserError(
                f'{where}: is {labels.shape[1]} x {labels.shape[0]} pixels, but its image '
                f'{results["img_path"]} is {size[1]} x {size[0]}'
            )
        found = self._values(labels, path)
        wrong = sorted(v for v in found - self.ignored if not 0 <= v < (self.number or v + 1))
        if wrong:
            reduced = ' (after reduce_zero_label took 1 off)' if self._reduced else ''
            raise UserError(
                f'{where}: has the label {some(wrong, 3)}{reduced}; there are '
                f'{self.number} classes, so labels are 0 to {self.number - 1}, or 255 for no class'
            )
        return found

    def _values(self, labels: np.ndarray, path: str) -> set[int]:
        if labels.dtype != np.uint8:
            return set(map(int, np.unique(labels)))
        if (deepest := _deepest(path)) > 255:
            return {deepest}
        return set(map(int, np.flatnonzero(np.bincount(labels.ravel(), minlength=256))))

    @property
    def _reduced(self) -> bool:
        return bool(self.leaf.config.get('reduce_zero_label')) or any(
            getattr(step, 'reduce_zero_label', False) for step in self.leaf.steps
        )

    def finish(self, trains: bool) -> str:
        """What to say of all label maps together.

        Raises:
            UserError: there is nothing to tell apart.
        """
        labels = self.seen - self.ignored
        if trains and len(labels) < min(2, self.number or 1) and self.seen & self.ignored:
            hint = (
                'reduce_zero_label turns label 0 into no class: set it to False where 0 is a class'
                if self._reduced
                else 'label 255 means no class: number the classes 0, 1, ...'
            )
            raise UserError(
                f'{self.leaf.key}: its label maps have the labels {some(sorted(self.seen))} alone, '
                f'which leaves nothing to tell apart; {hint}'
            )
        names = self.leaf.classes or []
        missing = [name for i, name in enumerate(names) if i not in labels]
        return f'; no pixel of {some(missing)}' if missing and self.number == len(names) else ''


def _deepest(path: str) -> int:
    """The largest number of a label map of more than 8 bits, which mmseg cuts down to 8; else 0."""
    try:
        with Image.open(path) as image:
            return 0 if image.mode in ('1', 'L', 'P') else int(np.asarray(image).max())
    except (OSError, ValueError):
        return 0  # a format of another reader


@contextmanager
def naming_label_maps(cfg: Config, splits: Sequence[str]) -> Iterator[None]:
    """Name the label map that does not decode; mmseg's own error has no file name."""
    try:
        yield
    except (AttributeError, OSError):
        if 'in _load_seg_map' not in traceback.format_exc():
            raise
        for split in splits:
            for key, dataset in leaves(cfg[f'{split}_dataloader'].dataset, split):
                for info in listing.infos(Leaf(key, dataset)):
                    _decode(info.get('seg_map_path'))
        raise


def _decode(path: str | None) -> None:
    try:
        if path:
            Image.open(path).load()  # as mmseg reads it
    except OSError as error:
        raise UserError(f'{path}: no label map that can be decoded') from error
