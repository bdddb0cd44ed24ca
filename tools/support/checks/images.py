"""Files of images: there, and of a kind that can be read."""

import os

from support.cli import UserError

STAT_UP_TO, DECODE = 5000, 3
"""How many of the images are looked for, and how many of them are decoded."""


def check_files(paths: list[str], key: str) -> None:
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
