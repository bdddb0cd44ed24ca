"""Pictures from files, as an exported file takes them."""

from pathlib import Path

import mmcv
import numpy as np

from support.cli import UserError


def read(path: str | Path) -> np.ndarray:
    """A picture (H, W, 3), RGB, uint8.

    Raises:
        UserError: what is there is no image.
    """
    picture = mmcv.imread(path, channel_order='rgb')
    if picture is None:
        raise UserError(f'{path}: no image that can be decoded')
    return picture


def resize(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """To height and width, whatever its proportions."""
    return mmcv.imresize(picture, shape[::-1])
