"""A classifier's data: the folders of its classes, against each other, the head and the metrics."""

import os
from collections import Counter

from mmengine.config import Config

from support.checks.dataset import Leaf, some
from support.checks.metrics import metrics_of
from support.cli import UserError


def check_classes(cfg: Config, leaf: Leaf, infos: list[dict], trained: list[str] | None) -> str:
    """Refuse classes that cannot be learned or told apart; what to say of the others.

    Args:
        infos: the images that the data set lists.
        trained: the classes of the data set that is trained on, where that was seen.
    """
    names = leaf.listed or leaf.classes or []
    counts = Counter(info['gt_label'] for info in infos if 'gt_label' in info)
    if leaf.trains and leaf.is_of_folders:
        _check_folders(leaf, names, counts)
    if trained is not None and names != trained:
        raise UserError(
            f'{leaf.key}: its classes are {some(names)}, those of the training {some(trained)}: '
            'classes are numbered in the order of their folders, so both need the same ones'
        )
    number = cfg.model.get('head', {}).get('num_classes')
    if number and names and number != len(names):
        hint = f': num_classes={len(names)}' if 'num_classes' in cfg else ''
        raise UserError(
            f'model.head.num_classes={number}, but {leaf.key} has {len(names)} classes '
            f'({some(names, 3)}); they must agree{hint}'
        )
    _check_metrics(cfg, leaf, number or len(names))
    sizes = [f'{names[label]} {count}' for label, count in counts.most_common()]
    shown = sizes if len(sizes) <= 6 else [*sizes[:3], '...', sizes[-1]]
    return f' of {len(counts)} classes: {", ".join(shown)}'


def _check_folders(leaf: Leaf, names: list[str], counts: Counter) -> None:
    root = leaf.config.get('data_root') or ''
    if len(names) == 1:
        raise UserError(
            f'{leaf.key}: {root}: one class only ({names[0]!r}); a classifier needs two or more, '
            'the images of each in a folder of its own'
        )
    empty = [name for label, name in enumerate(names) if not counts[label]]
    if empty:
        more = f', and {len(empty) - 1} more like it' if len(empty) > 1 else ''
        raise UserError(
            f'{leaf.key}: {os.path.join(root, empty[0])}: no image in this folder of a class'
            f'{more}; fill it, or remove it'
        )


def _check_metrics(cfg: Config, leaf: Leaf, classes: int) -> None:
    """mmpretrain finds out after the first epoch."""
    split = leaf.key.partition('_')[0]
    for key, metric in metrics_of(cfg.get(f'{split}_evaluator'), f'{split}_evaluator'):
        topk = metric.get('topk', 1)
        most = max(topk) if isinstance(topk, (list, tuple)) else topk
        if isinstance(most, int) and classes and most > classes:
            raise UserError(
                f'{key}.topk={topk}: there are {classes} classes; give {classes} or less'
            )
