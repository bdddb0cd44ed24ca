"""What a data set lists, as its own class reads it."""

import contextlib
import io
import os
from collections import Counter
from glob import escape
from pathlib import Path

from mmengine.registry import DATASETS

from support.checks import coco_file
from support.checks.dataset import Leaf, path_of, reason_of, some
from support.checks.tally import Tally
from support.cli import UserError

FAMILIES = {'BaseDetDataset', 'BaseSegDataset', 'BaseCDDataset', 'CustomDataset'}
"""Readers whose samples are images; others (video, captions) are left to themselves."""


def is_listable(leaf: Leaf) -> bool:
    """Whether a data set lists images, in files small enough to be read twice."""
    values = [path_of(leaf.config, name) for name in leaf.config if name.endswith('_file')]
    files = [path for path in values if path and os.path.isfile(path)]
    # a million files of known classes take too long to be listed twice
    known = 'ImageNet' in leaf.family or not leaf.family & FAMILIES
    return not known and not any(map(coco_file.is_large, files))


def infos(leaf: Leaf) -> list[dict]:
    """Image, label map, objects and the rest of each sample.

    Raises:
        UserError: the class refuses its files, or finds nothing in them.
    """
    config = {**leaf.config, 'pipeline': [], 'serialize_data': False, 'lazy_init': False}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools says what it does
            built = DATASETS.build(config)
            found = [built.get_data_info(i) for i in range(len(built))]
            leaf.listed = list(built.metainfo.get('classes') or ()) or None
    except Exception as error:
        raise UserError(f'{leaf.key}: {_source(leaf)}: {_reason(leaf, error)}') from error
    if not found:
        raise UserError(f'{leaf.key}: {_source(leaf)}: {_nothing(leaf)}')
    return found


def of_rows(leaf: Leaf, images: list[dict]) -> list[dict]:
    """The same without objects, of the first images of a COCO file too large to be read twice."""
    images_in, maps_in = (path_of(leaf.config, f'data_prefix.{name}') for name in ('img', 'seg'))
    suffix = leaf.config.get('seg_map_suffix', '.png')
    return [
        dict(
            img_path=os.path.join(images_in or '', image['file_name']),
            height=image['height'],
            width=image['width'],
            seg_map_path=maps_in
            and os.path.join(maps_in, os.path.splitext(image['file_name'])[0] + suffix),
            instances=[],
        )
        for image in images
    ]


def tally(infos: list[dict]) -> Tally:
    """What is to train on, of a data set that is not COCO's."""
    found = Tally(len(infos))
    for info in infos:
        instances = info.get('segments_info') or info.get('instances') or []
        ignored = sum(bool(instance.get('ignore_flag')) for instance in instances)
        found.objects += len(instances)
        found.dropped['marked ignore'] += ignored
        found.idle += ignored == len(instances)
    found.dropped += Counter()  # forget zeros
    return found


def _source(leaf: Leaf) -> str:
    """The file or folder that a data set's samples come from."""
    folder = path_of(leaf.config, 'data_prefix.img_path') or path_of(leaf.config, 'data_prefix.img')
    return leaf.path or folder or leaf.config.get('data_root') or ''


def _reason(leaf: Leaf, error: Exception) -> str:
    kind = leaf.kind.__name__
    if 'is not a subset of classes' in str(error):
        known = leaf.kind.METAINFO['classes']
        new = [name for name in leaf.classes or [] if name not in known]
        return f"{kind} has no class {some(new, 3)}; data of your own are of type='BaseSegDataset'"
    return f'{kind} can not read it: {reason_of(error)}'


def _nothing(leaf: Leaf) -> str:
    suffix = leaf.config.get('img_suffix', '.jpg')
    folder = Path(_source(leaf))
    if 'BaseDetDataset' in leaf.family or not folder.is_dir():
        return 'no image is left of it; see filter_cfg and indices'
    others = sorted({path.suffix for path in folder.rglob('*') if path.is_file()})
    hint = f'; it has {some(others, 3)}: set img_suffix' if others else ''
    return f'no image *{suffix} in it{hint}'


def hint_of_label_map(leaf: Leaf, path: str) -> str:
    """What to change where a label map is absent though one of another suffix is there."""
    suffix = leaf.config.get('seg_map_suffix', '.png')
    stem = Path(path[: -len(suffix)])
    beside = sorted(stem.parent.glob(f'{escape(stem.name)}*')) if stem.parent.is_dir() else []
    return f'; there is {beside[0]}: set seg_map_suffix' if beside else ''
