"""Data sets that a test may spoil, and what the checks say of them."""

import contextlib
import copy
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config, DictAction

from backbone.engine import apply_keys

ROOT = Path(__file__).resolve().parents[1]


@cache
def read_config(name: str) -> Config:
    return Config.fromfile(ROOT / name)


@dataclass
class OwnData:
    """A data set of a test's own at ``root``, of a config with options."""

    root: Path
    config: str
    options: list[str]

    def cfg(self, *options: str) -> Config:
        """The config, on this data set."""
        cfg = copy.deepcopy(read_config(self.config))
        for option in [*self.options, f'data_root={self.root}', *options]:
            key, value = option.split('=', 1)
            cfg.merge_from_dict({key: DictAction._parse_iterable(value)})
        return apply_keys(cfg)

    def check(self, *options: str, splits: tuple[str, ...] = ('train', 'val')) -> None:
        """Run the checks."""
        from support import checks

        checks.check_data(self.cfg(*options), splits)

    def said(self, *options: str, splits: tuple[str, ...] = ('train', 'val')) -> list[str]:
        """The lines that the checks say of good data."""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            self.check(*options, splits=splits)
        return [line for line in out.getvalue().splitlines() if '_dataloader.' in line]

    def refusal(self, *options: str, splits: tuple[str, ...] = ('train', 'val')) -> str:
        """The one line that the checks refuse it with."""
        from support.cli import UserError

        with pytest.raises(UserError) as refusal:
            self.check(*options, splits=splits)
        line = str(refusal.value)
        assert '\n' not in line
        return line

    def annotations(self, split: str = 'train') -> Path:
        """The annotation file of a split, of COCO's format."""
        return self.root / f'annotations/instances_{split}2017.json'

    def edit(self, change: Callable[[dict], object], split: str = 'train') -> None:
        """Change the content of an annotation file."""
        path = self.annotations(split)
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def image(self, number: int, split: str = 'train') -> Path:
        """An image, counted from 1, of a data set of COCO's format."""
        return self.root / f'{split}2017/{number:012}.jpg'


def write_turned(path: Path, pixels: np.ndarray, orientation: int = 6) -> None:
    """A JPEG with an EXIF orientation; 6 and 8 are a quarter turn."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels[..., ::-1]).save(path, exif=exif)
    assert cv2.imread(str(path), cv2.IMREAD_IGNORE_ORIENTATION) is not None
