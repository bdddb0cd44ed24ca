"""Annotation files in COCO's format, and the metrics that read them by themselves."""

import json
import mmap
import os
import re
from collections.abc import Sequence

from mmengine.config import Config

from support.checks.dataset import leaves, path_of, some
from support.cli import UserError, one_line

READ_UP_TO = 64 * 2**20
"""Bytes of an annotation file that is read twice for its own check: COCO's val, not its train."""

SKIM_ROWS, SKIM_BYTES = 100, 16 * 2**20
"""Of a larger file: how many images and annotations are looked at, and how far into each list."""


def check_coco(dataset: dict, key: str, classes: Sequence[str] | None) -> list[str]:
    """Check an annotation file; returns the paths of its images."""
    path = path_of(dataset, 'ann_file')
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
    folder = path_of(dataset, 'data_prefix.img') or ''
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
            f'{path}: has no category {some(missing)}; it has {some(names)}. Name its classes '
            f"with {key} (of every split), and their number with the heads' num_classes"
        )
    in_file = [name for name in names if name in set(classes)]
    if in_file != classes:
        i = next(i for i, name in enumerate(classes) if in_file[i] != name)
        raise UserError(
            f'{key}: {classes[i]!r} stands where the file {path} has {in_file[i]!r}; mmdet numbers '
            'the classes in the order of the file: give them in that order'
        )


def check_evaluator(cfg: Config, split: str) -> None:
    """The metric reads the annotation file by itself: it must be the dataset's."""
    evaluators = cfg.get(f'{split}_evaluator') or []
    inner = [leaf for _, leaf in leaves(cfg[f'{split}_dataloader'].dataset, '')]
    for metric in evaluators if isinstance(evaluators, list) else [evaluators]:
        path = metric.get('ann_file')
        if not path or metric.get('backend_args') or '://' in path:
            continue
        if not os.path.isfile(path):
            raise UserError(f'{split}_evaluator.ann_file={path}: no such file (from {os.getcwd()})')
        theirs = path_of(inner[0], 'ann_file')
        if len(inner) == 1 and theirs and not os.path.samefile(path, theirs):
            raise UserError(
                f"{split}_evaluator.ann_file={path} is not the data set's {theirs}; change both"
            )
