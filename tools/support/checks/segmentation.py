"""Images and label maps as mmseg lists them."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

from support.checks.dataset import leaves, path_of
from support.cli import UserError, one_line


def listed(dataset: dict, key: str) -> tuple[list[str], list[str]]:
    """The images and label maps that mmseg's dataset lists."""
    try:
        built = DATASETS.build({**dataset, 'pipeline': [], 'serialize_data': False})
    except (ValueError, TypeError, KeyError, AssertionError, OSError) as error:
        raise UserError(f'{key}: {one_line(error)}') from error
    rows = [built.get_data_info(i) for i in range(len(built))]
    if not rows:
        folder = path_of(dataset, 'data_prefix.img_path')
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
            for key, dataset in leaves(cfg[f'{split}_dataloader'].dataset, split):
                for path in listed(dataset, key)[1]:
                    _decode_label_map(path)
        raise


def _decode_label_map(path: str) -> None:
    try:
        Image.open(path).load()  # as mmseg reads it
    except OSError as error:
        raise UserError(f'{path}: no label map that can be decoded') from error
