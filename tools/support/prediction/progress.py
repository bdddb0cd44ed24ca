"""How far a run of predictions is, and how long the rest takes."""

import time
from pathlib import Path

from support.prediction.inputs import Reader, Source, frame_count

EVERY = 10.0
"""Seconds between two lines of what takes longer: the frames of a video, the tiles of an image."""


class Progress:
    """Counts the images and frames of a reader, and tells of them on stdout."""

    def __init__(self, reader: Reader) -> None:
        counts = [_images(source, reader.frames) for source in reader.sources]
        self._reader = reader
        self._all = None if None in counts else sum(counts)
        self._written = 0
        self._begin = self._told = time.monotonic()

    def written(self, text: str, at_once: bool) -> None:
        """One image more; ``text`` says which, now or when it is time for a line again."""
        self._written += 1
        done = self._written + len(self._reader.failed)
        of = left = ''
        if self._all:
            seconds = (time.monotonic() - self._begin) / done * (self._all - done)
            of = f'/{self._all}'
            left = f'{seconds:.0f} s' if seconds < 100 else f'{seconds / 60:.0f} min'
            left = f', {left} left' if done < self._all else ''
        self.tell(f'{done}{of} {text}{left}', at_once)

    def tell(self, text: str, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._told > EVERY:
            print(text, flush=True)
            self._told = time.monotonic()

    def kept(self, path: Path) -> str:
        """How much of what there is a file has, which is not there before the first image."""
        of = f' of {self._all}' if self._all else ''
        return (
            f'{self._written}{of} images are in {path}' if self._written else 'nothing is written'
        )


def _images(source: Source, frames: int | None) -> int | None:
    """How many a source has; None where nobody knows."""
    if not source.moves:
        return 1
    count = 0 if source.camera else frame_count(source)
    return min(count, frames) if count and frames else count or frames
