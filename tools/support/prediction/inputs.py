"""What there is to predict: the files, folders and cameras named, and their pictures one by one."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import mmcv
import numpy as np

from support import cli

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
VIDEO_SUFFIXES = ('.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.wmv')
USUAL_RATE = 25.0
"""Frames a second of a camera that does not say."""
MISSING = 0.01
"""Share of its frames that a video may lack: some files only estimate how many they have."""


@dataclass(frozen=True)
class Source:
    """An image file, a video file, or a camera; ``name`` as the user gave it."""

    name: str
    camera: bool = False

    @property
    def moves(self) -> bool:
        """Whether it has frames."""
        return self.camera or is_video(self.name)


@dataclass(frozen=True)
class Picture:
    """Pixels (H, W, 3), RGB, uint8; of a frame also its number, time in seconds and the rate."""

    source: Source
    pixels: np.ndarray
    frame: int | None = None
    seconds: float = 0.0
    rate: float = 0.0


def is_video(name: str) -> bool:
    return name.lower().endswith(VIDEO_SUFFIXES)


def find_sources(names: Iterable[str]) -> list[Source]:
    """The files named, the images of the folders named, sorted, and cameras; each once.

    Raises:
        UserError: there is no such thing, or no image in a folder.
    """
    found = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            for each in _images_in(path):
                found.setdefault(os.path.abspath(each), Source(str(each)))
        elif path.is_file():
            found.setdefault(os.path.abspath(path), Source(str(path)))
        elif name.isdecimal():
            found.setdefault(int(name), Source(name, camera=True))
        else:
            raise cli.UserError(f'{path}: no such file or folder')
    return list(found.values())


def _images_in(folder: Path) -> list[Path]:
    try:
        inside = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise cli.UserError(f'{folder}: {error.strerror}') from error
    if not inside:
        raise cli.UserError(f'{folder}: no images in this folder ({", ".join(SUFFIXES)})')
    return inside


class Reader:
    """The pictures of sources; what cannot be read is told on stderr and goes to ``failed``.

    Args:
        frames: most frames of a video or a camera; None for all there are.
    """

    def __init__(self, sources: list[Source], frames: int | None = None) -> None:
        self.sources, self.frames = sources, frames
        self.failed: list[Source] = []

    def __iter__(self) -> Iterator[Picture]:
        for source in self.sources:
            try:
                if source.moves:
                    yield from read_frames(source, self.frames)
                else:
                    yield Picture(source, read_image(Path(source.name)))
            except ValueError as error:
                print(f'{source.name}: {error}', file=sys.stderr, flush=True)
                self.failed.append(source)


def read_image(path: Path) -> np.ndarray:
    """The image's pixels (H, W, 3), RGB, uint8.

    Raises:
        ValueError: what is there is no image that can be decoded whole; says why.
    """
    try:
        content = path.read_bytes()
        picture = mmcv.imfrombytes(content, channel_order='rgb') if content else None
    except OSError as error:
        raise ValueError(f'{error.strerror}; left out') from error
    except cv2.error as error:
        raise ValueError('no image that can be decoded; left out') from error
    if picture is None:
        raise ValueError('no image that can be decoded; left out')
    return picture


def read_frames(source: Source, most: int | None) -> Iterator[Picture]:
    """The first ``most`` frames of a video, or of what a camera sees from now on.

    Raises:
        ValueError: nothing can be decoded, or, after the last frame that can, less than there is.
    """
    capture = cv2.VideoCapture(int(source.name) if source.camera else source.name)
    try:
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate < 1000 else USUAL_RATE
        begin = time.monotonic()
        done = 0
        while done != most:
            there, pixels = capture.read()
            if not there:
                break
            seconds = time.monotonic() - begin if source.camera else done / rate
            yield Picture(source, mmcv.bgr2rgb(pixels), done, round(seconds, 3), rate)
            done += 1
        if not done:
            kind = 'camera that can be read' if source.camera else 'video that can be decoded'
            raise ValueError(f'no {kind}; left out')
        promised = 0 if source.camera else frame_count(source)
        if done != most and promised - done > max(1, MISSING * promised):
            raise ValueError(f'only {done} of {promised} frames can be decoded')
    finally:
        capture.release()


def frame_count(source: Source) -> int:
    """How many frames a video says it has; 0 where it does not."""
    capture = cv2.VideoCapture(source.name)
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    return int(count) if 0 < count < 1e9 else 0


def batches(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    """At most ``size`` pictures that follow each other and have one shape.

    Pictures of several shapes would be padded to the largest, which changes what is found in them.
    """
    batch: list[Picture] = []
    for picture in pictures:
        if batch and picture.pixels.shape != batch[0].pixels.shape:
            yield batch
            batch = []
        batch.append(picture)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
