"""Which files are let in: pictures of a size that a server can take, judged before decoding."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from support import cli
from support.prediction.inputs import Picture, Source, read_image

MOST_PIXELS = 25_000_000
"""Of a picture, e.g. 6000 × 4000; masks of 100 objects take 2.5 GB of memory meanwhile."""


@dataclass(frozen=True)
class Limits:
    megabytes: float = 20.0
    pixels: int = MOST_PIXELS

    @property
    def bytes(self) -> int:
        return int(self.megabytes * 2**20)

    def __str__(self) -> str:
        return f'{self.megabytes:g} MB and {self.pixels / 1e6:g} megapixels'


def read(path: str, limits: Limits) -> Picture:
    """The picture in a file.

    Raises:
        UserError: it is none, or too large; says so in one line.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        if size > limits.bytes:
            raise cli.UserError(
                f'{file.name}: {size / 2**20:.1f} MB, more than the {limits.megabytes:g} MB that '
                'are taken here; make it smaller'
            )
        with Image.open(file) as header:  # reads no pixels yet
            width, height = header.size
    except Image.DecompressionBombError as error:
        raise cli.UserError(f'{file.name}: {cli.one_line(error)}') from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise cli.UserError(
            f'{file.name}: no image; choose a JPEG, PNG, WebP, TIFF or BMP'
        ) from error
    if width * height > limits.pixels:
        raise cli.UserError(
            f'{file.name}: {width} × {height} pixels, more than the {limits.pixels / 1e6:g} '
            'megapixels that are taken here; make it smaller'
        )
    try:
        return Picture(Source(file.name), read_image(file))
    except ValueError as error:
        raise cli.UserError(
            f'{file.name}: an image that cannot be decoded whole; choose another'
        ) from error
