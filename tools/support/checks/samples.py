"""Images and label maps, read as the pipeline reads them."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from mmengine.config import Config
from PIL import ExifTags, Image

from support.checks.dataset import Leaf, reason_of
from support.checks.label_maps import Labels, ignored_labels, number_of_labels
from support.checks.listing import hint_of_label_map
from support.cli import UserError

STAT_UP_TO, READ_WHOLE, READ_OF_LARGER = 5000, 2000, 100
"""How many files are looked for; how many images a set may have to be read whole; how many images
are read of a larger set, evenly spaced."""

PATIENCE = 5
"""Seconds between two lines that say how far it is."""


def spread(number: int, most: int) -> range:
    """At most so many evenly spaced indices below ``number``."""
    return range(0, number, max(1, -(-number // most)))


def check(cfg: Config, leaf: Leaf, infos: list[dict]) -> str:
    """Look for the files of the samples, and read them; returns what to say of label maps."""
    if any(_is_needed(step) for step in leaf.steps):
        _check_there(leaf, infos, 'img_path')
    if leaf.loads('seg'):
        _check_there(leaf, infos, 'seg_map_path')
    whole = len(infos) <= READ_WHOLE
    chosen = infos if whole else [infos[i] for i in spread(len(infos), READ_OF_LARGER)]
    labels = Labels(leaf, number_of_labels(cfg, leaf), ignored_labels(cfg, leaf))
    for found in _in_threads(leaf.key, partial(_look, leaf, labels), chosen):
        labels.seen |= found
    return labels.finish(leaf.trains) if whole and labels.seen else ''


def _is_needed(step: Any) -> bool:
    """Whether a transform reads the image, and does not pass over one that is absent."""
    return 'Image' in type(step).__name__ and not getattr(step, 'ignore_empty', False)


def _check_there(leaf: Leaf, infos: list[dict], name: str) -> None:
    """Are the files there (evenly spaced ones, where there are many)?"""
    paths = [info[name] for info in infos if isinstance(info.get(name), str)]
    for path in (paths[i] for i in spread(len(paths), STAT_UP_TO)):
        if not os.path.isfile(path):
            hint = hint_of_label_map(leaf, path) if name == 'seg_map_path' else ''
            raise UserError(f'{leaf.key}: {path}: listed, but there is no such file{hint}')
        if os.path.getsize(path) == 0:
            raise UserError(f'{leaf.key}: {path}: the file is empty')


def _in_threads(
    key: str, look: Callable[[dict], set[int]], infos: list[dict]
) -> Iterator[set[int]]:
    """What ``look`` finds in each sample, in their order; says how far it is."""
    begin = said = time.monotonic()
    executor = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        for done, found in enumerate(executor.map(look, infos), 1):
            yield found
            now = time.monotonic()
            if now - said > PATIENCE:
                left = (now - begin) / done * (len(infos) - done)
                print(f'{key}: read {done} of {len(infos)} images, {left:.0f} s left', flush=True)
                said = now
    finally:
        executor.shutdown(cancel_futures=True)


def _look(leaf: Leaf, labels: Labels, info: dict) -> set[int]:
    """Read a sample as the pipeline does and check it; returns the labels in its label map."""
    results: Any = {**info}
    for step in leaf.steps:
        try:
            results = step(results)
        except Exception as error:
            raise UserError(f'{leaf.key}: {_blame(leaf, step, info, error)}') from error
        if results is None:  # the pipeline passes over it (ignore_empty)
            return set()
    if 'CocoDataset' in leaf.family and 'ori_shape' in results:
        size = results['height'], results['width']
        _check_size(leaf, results['img_path'], results['ori_shape'][:2], size)
    return labels.of(results) if leaf.loads('seg') and 'gt_seg_map' in results else set()


def _blame(leaf: Leaf, step: Any, info: dict, error: Exception) -> str:
    """The file that a step could not read."""
    reason, path = reason_of(error), info.get('img_path')
    if 'Image' in type(step).__name__:
        how = f'imdecode_backend={getattr(step, "imdecode_backend", None)!r}: {reason}'
        return f'{path}: no image that can be decoded ({how}); replace it or leave it out'
    if getattr(step, 'with_seg', False) and info.get('seg_map_path'):
        return f'{info["seg_map_path"]}: no label map that can be decoded ({reason})'
    return f'{path}: {type(step).__name__} can not read its annotations: {reason}'


def _check_size(leaf: Leaf, path: str, size: tuple[int, int], listed: tuple[int, int]) -> None:
    """The (height, width) of an image as it is read, and as the annotation file has it."""
    if size == listed:
        return
    says = f'is read as {size[1]} x {size[0]} pixels and is {listed[1]} x {listed[0]} in the file'
    if size != listed[::-1]:
        why = 'was it resized after it was annotated?'
    elif _is_turned(path):
        why = (
            'its EXIF orientation turns it: where the annotations fit the image as it is stored, '
            'remove that tag from the file'
        )
    else:
        why = 'are width and height swapped?'
    raise UserError(f'{leaf.key}: {path}: {says} of annotations; {why}')


def _is_turned(path: str) -> bool:
    try:
        with Image.open(path) as image:
            return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except (OSError, ValueError):
        return False
