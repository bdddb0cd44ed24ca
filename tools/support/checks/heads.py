"""The heads' numbers of classes against the data set's classes."""

from collections.abc import Iterator, Sequence

from mmengine.config import Config
from mmengine.registry import MODELS

from support.checks.dataset import kind_of, some
from support.cli import UserError

CLASSIFIERS = {
    'bbox_head', 'mask_head', 'mask_iou_head', 'point_head', 'query_head', 'decode_head',
    'auxiliary_head', 'panoptic_head', 'panoptic_fusion_head',
}  # fmt: skip
"""Heads whose outputs are the data set's classes. Others (semantic heads of detectors, boundaries,
proposals, attributes) count something else."""


def check_heads(cfg: Config, key: str, classes: Sequence[str] | None) -> None:
    """Refuse a head that has another number of classes than the data set ``key``."""
    if classes is None or _reads_names(cfg.model):
        return
    advice = f': num_classes={len(classes)}' if 'num_classes' in cfg.get('applied_keys', {}) else ''
    for place, head in heads(cfg.model):
        name = 'num_things_classes' if 'num_things_classes' in head else 'num_classes'
        number = head.get(name)
        if number not in (None, len(classes)) and not head.get('class_agnostic'):
            raise UserError(
                f'{place}.{name}={number}, but {key} has {len(classes)} classes '
                f'({some(classes, 3)}); they must agree{advice}'
            )


def heads(node: object, place: str = 'model', name: str = 'model') -> Iterator[tuple[str, dict]]:
    """The heads of a model that tell the data set's classes apart, with their places."""
    if isinstance(node, dict):
        if name in CLASSIFIERS and not (name == 'auxiliary_head' and _has_other_targets(node)):
            yield place, node
        for child, value in node.items():
            if child not in ('rpn_head', 'backbone', 'neck', 'data_preprocessor'):
                yield from heads(value, f'{place}.{child}', child)
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from heads(value, f'{place}.{i}', name)


def _has_other_targets(head: dict) -> bool:
    """Whether a head of mmseg's makes the targets of its loss by itself, as STDC's boundaries."""
    kind = kind_of(MODELS, head.get('type'))
    base = [c for c in getattr(kind, '__mro__', ()) if c.__name__ == 'BaseDecodeHead']
    return bool(base) and kind.loss_by_feat is not base[0].loss_by_feat


def _reads_names(model: dict) -> bool:
    """Whether classes are texts that a language model reads, of which a head takes up to 256."""
    return isinstance(model, dict) and (
        'language_model' in model or any(_reads_names(v) for v in model.values())
    )
