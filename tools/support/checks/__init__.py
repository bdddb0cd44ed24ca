"""Look at the data before anything is built: one clear line instead of a traceback an hour later.

mmdet takes some mistakes without a word: with a class that the annotation file has not, or classes
in another order than the file's, it trains on shifted labels.
"""

import os
from collections.abc import Iterator, Sequence

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner

from support.checks.coco import check_coco, check_evaluator
from support.checks.dataset import leaves, path_of, some
from support.checks.images import check_files
from support.checks.segmentation import listed, naming_label_maps
from support.cli import UserError, one_line

__all__ = ['build_loops', 'check_data', 'naming_label_maps']


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Check the datasets of ``cfg``.

    Raises:
        UserError: files are missing or malformed, or the classes fit neither file nor heads.
    """
    if os.environ.get('LOCAL_RANK', '0') != '0':
        return  # one process of each machine looks; the others wait for it in the process group
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if not loader:
            continue
        for key, dataset in leaves(loader.dataset, f'{split}_dataloader.dataset'):
            _check_dataset(cfg, dataset, key)
        check_evaluator(cfg, split)


def build_loops(runner: Runner, splits: Sequence[str]) -> None:
    """Build datasets and loops now, so that what they refuse comes in one line as well."""
    for split in splits:
        if getattr(runner, f'_{split}_loop') is None:
            continue
        try:
            getattr(runner, f'{split}_loop')
        except (ValueError, TypeError, KeyError, AssertionError, OSError) as error:
            raise UserError(f'{split}_dataloader: {one_line(error)}') from error


def _check_dataset(cfg: Config, dataset: dict, key: str) -> None:
    if dataset.get('backend_args'):  # not on a local disk
        return
    for name in (
        'ann_file',
        *(f'data_prefix.{prefix}' for prefix in dataset.get('data_prefix', {})),
    ):
        path = path_of(dataset, name)
        if path and not os.path.exists(path):
            raise UserError(
                f'{key}: {path}: no such file or directory (from {os.getcwd()}); give the place of '
                'the data with --cfg-options data_root=DIR'
            )
    with DATASETS.switch_scope_and_registry(None) as registry:
        kind = registry.get(dataset['type'])
    if kind is None:
        return  # the registry's own message, when the dataset is built, lists what to do
    classes = dataset.get('metainfo', {}).get('classes') or getattr(kind, 'METAINFO', {}).get(
        'classes'
    )
    if isinstance(classes, str):
        raise UserError(f'{key}.metainfo.classes={classes!r}: must be a list; write [{classes!r}]')
    parents = {parent.__name__ for parent in kind.__mro__}
    if 'CocoDataset' in parents:
        images = check_coco(dataset, key, classes)
        maps = []
    elif 'BaseSegDataset' in parents:
        images, maps = listed(dataset, key)
    else:
        return
    _check_heads(cfg.model, key, classes)
    check_files(images, key)
    check_files(maps, key)


def _check_heads(model: dict, key: str, classes: Sequence[str] | None) -> None:
    """The heads' ``num_classes`` against the dataset's classes."""
    if classes is None:
        return
    for place, head in _heads(model, 'model'):
        number = head['num_classes']
        if not head.get('class_agnostic') and number != len(classes):
            raise UserError(
                f'{place}.num_classes={number}, but {key} has {len(classes)} classes '
                f'({some(classes, 3)}); they must agree'
            )


def _heads(node: object, place: str) -> Iterator[tuple[str, dict]]:
    if isinstance(node, dict):
        if 'num_classes' in node and place.split('.')[-1] != 'backbone':
            yield place, node
        for name, value in node.items():
            yield from _heads(value, f'{place}.{name}')
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from _heads(value, f'{place}.{i}')
