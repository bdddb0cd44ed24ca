"""Images are read as the pipeline reads them: all of a small set, turned by EXIF or not."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from own_data import OwnData, write_turned
from support.checks import samples
from tiny_data import SIZES

BACKEND = 'train_dataloader.dataset.pipeline.0.imdecode_backend'
COLOR = 'train_dataloader.dataset.pipeline.0.color_type'


def test_image_that_is_listed_but_absent(own_coco: OwnData) -> None:
    own_coco.image(2).unlink()
    assert '000000000002.jpg: listed, but there is no such file' in own_coco.refusal()


def test_image_that_is_empty(own_coco: OwnData) -> None:
    own_coco.image(2).write_bytes(b'')
    assert '000000000002.jpg: the file is empty' in own_coco.refusal()


@pytest.mark.parametrize('number', range(1, 1 + len(SIZES)))
def test_each_image_of_a_small_set_is_decoded(number: int, own_coco: OwnData) -> None:
    own_coco.image(number).write_bytes(b'no picture')
    assert f'{own_coco.image(number)}: no image that can be decoded' in own_coco.refusal()


def test_a_sample_of_a_larger_set_is_decoded(
    own_coco: OwnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, 'READ_WHOLE', 3)
    monkeypatch.setattr(samples, 'READ_OF_LARGER', 2)
    own_coco.image(2).write_bytes(b'no picture')
    own_coco.check()
    own_coco.image(3).write_bytes(b'no picture')
    assert '000000000003.jpg: no image that can be decoded' in own_coco.refusal()


@pytest.mark.parametrize(
    ('number', 'most', 'chosen'),
    [(0, 3, []), (3, 3, [0, 1, 2]), (4, 3, [0, 2]), (10, 3, [0, 4, 8]), (2000, 1, [0])],
)
def test_spread(number: int, most: int, chosen: list[int]) -> None:
    assert list(samples.spread(number, most)) == chosen


def test_long_reading_says_how_far_it_is(
    own_coco: OwnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, 'PATIENCE', -1)
    said = own_coco.said(splits=('train',))
    assert said[0].startswith('train_dataloader.dataset: read 1 of 4 images, ')


def put_turned(data: OwnData, orientation: int) -> None:
    """The first image, stored as the annotation file has it, with an EXIF orientation."""
    pixels = cv2.imread(str(data.image(1)))
    write_turned(data.image(1), pixels, orientation)


@pytest.mark.parametrize('orientation', [5, 6, 7, 8])
def test_photo_annotated_as_it_is_stored_but_turned_when_read(
    orientation: int, own_coco: OwnData
) -> None:
    put_turned(own_coco, orientation)
    line = own_coco.refusal()
    assert f'{own_coco.image(1)}: is read as 96 x 128 pixels and is 128 x 96 in the file' in line
    assert 'EXIF orientation' in line


def test_photo_annotated_as_it_is_read_passes(own_coco: OwnData) -> None:
    put_turned(own_coco, 6)
    own_coco.edit(lambda content: content['images'][0].update(width=96, height=128))
    own_coco.check(splits=('train',))


@pytest.mark.parametrize('option', [f'{COLOR}=color_ignore_orientation', f'{COLOR}=unchanged'])
def test_photo_that_the_pipeline_does_not_turn_passes(option: str, own_coco: OwnData) -> None:
    put_turned(own_coco, 6)
    own_coco.check(option, splits=('train',))


def test_pillow_turns_photos_too(own_coco: OwnData) -> None:
    put_turned(own_coco, 6)
    assert 'EXIF orientation' in own_coco.refusal(f'{BACKEND}=pillow')


def test_swapped_sizes(own_coco: OwnData) -> None:
    own_coco.edit(lambda content: content['images'][0].update(width=96, height=128))
    line = own_coco.refusal()
    assert '000000000001.jpg: is read as 128 x 96 pixels and is 96 x 128 in the file' in line
    assert 'are width and height swapped?' in line


def test_images_resized_after_they_were_annotated(own_coco: OwnData) -> None:
    own_coco.edit(lambda content: content['images'][0].update(width=256, height=192))
    assert 'was it resized after it was annotated?' in own_coco.refusal()


def convert(path: Path, suffix: str) -> bytes:
    """The image in another format, under its old name."""
    from PIL import Image

    Image.open(path).save(path.with_suffix(suffix))
    content = path.with_suffix(suffix).read_bytes()
    path.write_bytes(content)
    return content


def test_formats_that_only_the_pipelines_reader_decodes_pass(own_coco: OwnData) -> None:
    """OpenCV reads no PCX; Pillow does."""
    content = convert(own_coco.image(1), '.pcx')
    assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) is None
    line = own_coco.refusal(splits=('train',))
    assert "no image that can be decoded (imdecode_backend='cv2'" in line
    own_coco.check(f'{BACKEND}=pillow', splits=('train',))


@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.tif', '.webp', '.gif'])
def test_other_formats_pass(suffix: str, own_coco: OwnData) -> None:
    convert(own_coco.image(1), suffix)
    own_coco.check(splits=('train',))


def test_images_that_the_pipeline_passes_over_pass(own_coco: OwnData) -> None:
    own_coco.image(2).unlink()
    own_coco.check('train_dataloader.dataset.pipeline.0.ignore_empty=True')
