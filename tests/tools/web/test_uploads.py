"""What is let in, and what is refused before a pixel of it is decoded."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import cli
from support.web.uploads import Limits, read
from tiny_data import write_image

LIMITS = Limits(megabytes=1, pixels=10_000)


def png_of(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels, and has the data of none."""
    size = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    parts = [(b'IHDR', size), (b'IDAT', zlib.compress(b'')), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
        for name, data in parts
    )


def test_a_picture_is_read_as_rgb(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    write_image(tmp_path / 'a.png', pixels)
    picture = read(str(tmp_path / 'a.png'), LIMITS)
    assert picture.source.name == 'a.png'
    assert np.array_equal(picture.pixels, cv2.imread(str(tmp_path / 'a.png'))[..., ::-1])


@pytest.mark.parametrize(
    ('content', 'why'),
    [
        pytest.param(b'hello', 'no image', id='text'),
        pytest.param(b'', 'no image', id='empty'),
        pytest.param(b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'no image', id='svg'),
        pytest.param(png_of(101, 100), '101 × 100 pixels', id='more pixels than are taken'),
        pytest.param(png_of(60_000, 60_000), 'pixels', id='a decompression bomb'),
        pytest.param(png_of(50, 50), 'cannot be decoded', id='torn'),
        pytest.param(bytes(2**20 + 1), '1.0 MB, more than the 1 MB', id='more bytes'),
    ],
)
def test_anything_else_is_refused_in_one_line(content: bytes, why: str, tmp_path: Path) -> None:
    file = tmp_path / 'photo.png'
    file.write_bytes(content)
    with pytest.raises(cli.UserError, match=f'^photo.png: .*{why}') as refused:
        read(str(file), LIMITS)
    assert '\n' not in str(refused.value)
    assert str(tmp_path) not in str(refused.value)
