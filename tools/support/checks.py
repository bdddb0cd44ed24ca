"""Look at the data before anything is built: one clear line instead of a traceback an hour later.

mmdet takes some mistakes without a word: with a class that the annotation file has not, or classes
in another order than the file's, it trains on shifted labels.
"""

import json
import mmap
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from PIL import Image

from support.cli import UserError, one_line

READ_UP_TO = 64 * 2**20
"""Bytes of an annotation file that is read twice for its own check: COCO's val, not its train."""

SKIM_ROWS, SKIM_BYTES = 100, 16 * 2**20
"""Of a larger file: how many images and annotations are looked at, and how far into each list."""

STAT_UP_TO, DECODE = 5000, 3
"""How many of the images are looked for, and how many of them are decoded."""


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
        for key, dataset in _leaves(loader.dataset, f'{split}_dataloader.dataset'):
            _check_dataset(cfg, dataset, key)
        _check_evaluator(cfg, split)


def build_loops(runner: Runner, splits: Sequence[str]) -> None:
    """Build datasets and loops now, so that what they refuse comes in one line as well."""
    for split in splits:
        if getattr(runner, f'_{split}_loop') is None:
            continue
        try:
            getattr(runner, f'{split}_loop')
        except (ValueError, TypeError, KeyError, AssertionError, OSError) as error:
            raise UserError(f'{split}_dataloader: {one_line(error)}') from error


def _leaves(dataset: dict, key: str) -> Iterator[tuple[str, dict]]:
    """The datasets inside wrappers (RepeatDataset, ConcatDataset), with their keys."""
    inner = dataset.get('dataset', dataset.get('datasets'))
    if isinstance(inner, dict):
        yield from _leaves(inner, f'{key}.dataset')
    elif inner:
        for i, each in enumerate(inner):
            yield from _leaves(each, f'{key}.datasets.{i}')
    else:
        yield key, dataset


def _check_dataset(cfg: Config, dataset: dict, key: str) -> None:
    if dataset.get('backend_args'):  # not on a local disk
        return
    for name in (
        'ann_file',
        *(f'data_prefix.{prefix}' for prefix in dataset.get('data_prefix', {})),
    ):
        path = _path(dataset, name)
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
        images = _check_coco(dataset, key, classes)
        maps = []
    elif 'BaseSegDataset' in parents:
        images, maps = _listed(dataset, key)
    else:
        return
    _check_heads(cfg.model, key, classes)
    _check_files(images, key)
    _check_files(maps, key)


def _path(dataset: dict, dotted: str) -> str | None:
    """A path of a dataset's config as mmengine joins it with ``data_root``."""
    value: Any = dataset
    for name in dotted.split('.'):
        value = value.get(name) if value else None
    if not isinstance(value, str) or '://' in value or not (value or dotted != 'ann_file'):
        return None
    return os.path.join(dataset.get('data_root') or '', value)


# --- COCO's format ------------------------------------------------------------------------------


def _check_coco(dataset: dict, key: str, classes: Sequence[str] | None) -> list[str]:
    """Check an annotation file; returns the paths of its images."""
    path = _path(dataset, 'ann_file')
    if not path:
        return []
    content = (_skim_coco if os.path.getsize(path) > READ_UP_TO else _read_coco)(path)
    names = [category['name'] for category in content['categories']]
    if classes is not None:
        _check_classes(path, f'{key}.metainfo.classes', list(classes), names)
    needs = ['image_id', 'category_id', 'bbox', 'area']
    if any(step.get('with_mask') for step in dataset.get('pipeline', [])):
        needs.append('segmentation')
    if not content['annotations'] and not dataset.get('test_mode'):
        raise UserError(f'{path}: has no annotations to train on')
    for i, annotation in enumerate(content['annotations']):
        lacking = [field for field in needs if field not in annotation]
        if lacking:
            what = ' (boxes alone can train RetinaNet)' if lacking == ['segmentation'] else ''
            raise UserError(f'{path}: annotations[{i}] has no {", ".join(lacking)}{what}')
    folder = _path(dataset, 'data_prefix.img') or ''
    return [os.path.join(folder, image['file_name']) for image in content['images']]


def _read_coco(path: str) -> dict[str, list[dict]]:
    """The three lists of an annotation file."""
    what = f'{path}: no COCO annotation file'
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:  # a JSONDecodeError and a UnicodeDecodeError too
        raise UserError(f'{what}: not JSON: {one_line(error)}') from error
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from error
    if not isinstance(content, dict):
        raise UserError(f'{what}: a JSON {type(content).__name__}, not an object')
    _check_rows(what, content, f'; its keys are {sorted(content)[:8]}')
    return content


def _skim_coco(path: str) -> dict[str, list[dict]]:
    """The categories and the first images and annotations of a file too large to be read twice."""
    what = f'{path}: no COCO annotation file'
    try:
        with (
            open(path, 'rb') as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            if not content[:64].lstrip().startswith(b'{'):
                raise UserError(f'{what}: not JSON: it begins with {content[:16]!r}, not with {{')
            if not content[-64:].rstrip().endswith(b'}'):
                raise UserError(f'{what}: cut short: it ends with {content[-16:]!r}, not with }}')
            rows = {
                'images': _first_rows(content, b'images', SKIM_ROWS),
                'annotations': _first_rows(content, b'annotations', SKIM_ROWS),
                'categories': _first_rows(content, b'categories', None),
            }
    except ValueError as error:
        raise UserError(f'{what}: not JSON: {one_line(error)}') from error
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from error
    _check_rows(what, rows)
    return rows


def _first_rows(content: mmap.mmap, part: bytes, most: int | None) -> list | None:
    """At most so many rows of a list of a JSON file, None where it has no such list.

    Raises:
        ValueError: the list begins with what is not JSON.
    """
    found = re.search(rb'"%s"\s*:\s*\[' % part, content)
    if not found:
        return None
    text = content[found.end() : found.end() + SKIM_BYTES].decode(errors='replace')
    decoder, between = json.JSONDecoder(), re.compile(r'[\s,]*')
    rows, at = [], between.match(text).end()
    while text[at : at + 1] not in (']', '') and (most is None or len(rows) < most):
        try:
            row, at = decoder.raw_decode(text, at)
        except ValueError:
            if not rows:
                raise
            break  # longer than what is looked at, or damaged there: the data set will tell
        rows.append(row)
        at = between.match(text, at).end()
    return rows


def _check_rows(what: str, content: dict, hint: str = '') -> None:
    for part, fields in {
        'images': ('id', 'file_name', 'width', 'height'),
        'annotations': (),
        'categories': ('id', 'name'),
    }.items():
        rows = content.get(part)
        if not isinstance(rows, list):
            raise UserError(f'{what}: no list "{part}"{hint}')
        for i, row in enumerate(rows):
            lacking = [f for f in fields if not isinstance(row, dict) or f not in row]
            if lacking or not isinstance(row, dict):
                raise UserError(f'{what}: {part}[{i}] has no {", ".join(lacking) or "fields"}')


def _check_classes(path: str, key: str, classes: list[str], names: list[str]) -> None:
    missing = [name for name in classes if name not in names]
    if missing:
        raise UserError(
            f'{path}: has no category {_some(missing)}; it has {_some(names)}. Name its classes '
            f"with {key} (of every split), and their number with the heads' num_classes"
        )
    in_file = [name for name in names if name in set(classes)]
    if in_file != classes:
        i = next(i for i, name in enumerate(classes) if in_file[i] != name)
        raise UserError(
            f'{key}: {classes[i]!r} stands where the file {path} has {in_file[i]!r}; mmdet numbers '
            'the classes in the order of the file: give them in that order'
        )


def _some(names: Sequence[str], most: int = 5) -> str:
    rest = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(map(repr, names[:most])) + rest


def _check_evaluator(cfg: Config, split: str) -> None:
    """The metric reads the annotation file by itself: it must be the dataset's."""
    evaluators = cfg.get(f'{split}_evaluator') or []
    leaves = [leaf for _, leaf in _leaves(cfg[f'{split}_dataloader'].dataset, '')]
    for metric in evaluators if isinstance(evaluators, list) else [evaluators]:
        path = metric.get('ann_file')
        if not path or metric.get('backend_args') or '://' in path:
            continue
        if not os.path.isfile(path):
            raise UserError(f'{split}_evaluator.ann_file={path}: no such file (from {os.getcwd()})')
        theirs = _path(leaves[0], 'ann_file')
        if len(leaves) == 1 and theirs and not os.path.samefile(path, theirs):
            raise UserError(
                f"{split}_evaluator.ann_file={path} is not the data set's {theirs}; change both"
            )


# --- segmentation -------------------------------------------------------------------------------


def _listed(dataset: dict, key: str) -> tuple[list[str], list[str]]:
    """The images and label maps that mmseg's dataset lists."""
    try:
        built = DATASETS.build({**dataset, 'pipeline': [], 'serialize_data': False})
    except (ValueError, TypeError, KeyError, AssertionError, OSError) as error:
        raise UserError(f'{key}: {one_line(error)}') from error
    rows = [built.get_data_info(i) for i in range(len(built))]
    if not rows:
        folder = _path(dataset, 'data_prefix.img_path')
        raise UserError(f'{key}: {folder}: no image *{built.img_suffix} in it')
    maps = [row['seg_map_path'] for row in rows if row.get('seg_map_path')]
    return [row['img_path'] for row in rows], maps


@contextmanager
def naming_label_maps(cfg: Config, splits: Sequence[str]) -> Iterator[None]:
    """Name the label map that does not decode; mmseg's own error has no file name."""
    try:
        yield
    except (AttributeError, OSError):
        if 'in _load_seg_map' not in traceback.format_exc():
            raise
        for split in splits:
            for key, dataset in _leaves(cfg[f'{split}_dataloader'].dataset, split):
                for path in _listed(dataset, key)[1]:
                    _decode_label_map(path)
        raise


def _decode_label_map(path: str) -> None:
    try:
        Image.open(path).load()  # as mmseg reads it
    except OSError as error:
        raise UserError(f'{path}: no label map that can be decoded') from error


# --- both ---------------------------------------------------------------------------------------


def _check_heads(model: dict, key: str, classes: Sequence[str] | None) -> None:
    """The heads' ``num_classes`` against the dataset's classes."""
    if classes is None:
        return
    for place, head in _heads(model, 'model'):
        number = head['num_classes']
        if not head.get('class_agnostic') and number != len(classes):
            raise UserError(
                f'{place}.num_classes={number}, but {key} has {len(classes)} classes '
                f'({_some(classes, 3)}); they must agree'
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


def _check_files(paths: list[str], key: str) -> None:
    """Are they there (evenly spaced ones, where there are many), and do some of them decode?"""
    import cv2

    for path in paths[:: max(1, -(-len(paths) // STAT_UP_TO))]:
        if not os.path.isfile(path):
            raise UserError(f'{key}: {path}: listed, but there is no such file')
        if os.path.getsize(path) == 0:
            raise UserError(f'{key}: {path}: the file is empty')
    for path in paths[:: max(1, -(-len(paths) // DECODE))]:
        if cv2.imread(path, cv2.IMREAD_UNCHANGED) is None:
            raise UserError(f'{key}: {path}: no image that can be decoded')
