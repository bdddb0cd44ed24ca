"""tools/image_demo.py: a picture an image, one JSON file, for both kinds of model."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
import pytest
from conftest import DET_CONFIG, SEG_CONFIG, load_tool
from mmseg.datasets import ADE20KDataset
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_data import write_image

SMALL_SEG = ['test_dataloader.dataset.pipeline.1.scale=(128,96)']


@pytest.fixture
def small(tiny_det: list[str]) -> dict[str, list[str]]:
    """By config, ``--cfg-options`` that make a prediction quick."""
    few = [o for o in tiny_det if o.startswith('model.test_cfg') or 'test_dataloader.dat' in o]
    return {DET_CONFIG: few, SEG_CONFIG: SMALL_SEG}


@pytest.mark.parametrize('config', [DET_CONFIG, SEG_CONFIG])
def test_pictures_and_findings(
    config: str, tmp_path: Path, tiny_coco: Path, small: dict[str, list[str]],
    checkpoints: dict[str, Path], run_tool: Callable[..., int],
) -> None:  # fmt: skip
    folder = tiny_coco / 'val2017'
    one = tiny_coco / 'train2017/000000000002.jpg'
    status = run_tool(
        'image_demo', config, checkpoints[config], folder, one, '--out-dir', tmp_path / 'out',
        '--score-thr', '0', '--masks', '--cfg-options', *small[config],
    )  # fmt: skip
    assert status == 0
    found = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert set(found) == {str(one), *map(str, folder.iterdir())}
    for path, result in found.items():
        below = Path(path).relative_to(tiny_coco)  # the folder that all images share
        picture = cv2.imread(str(tmp_path / 'out' / f'{below}.png'))
        assert picture.shape == cv2.imread(path).shape
        if config == DET_CONFIG:
            assert len(result) == 5
            assert set(result[0]) == {'class', 'score', 'box_xyxy', 'mask'}
            assert coco_mask.decode(result[0]['mask']).shape == picture.shape[:2]
        else:
            assert sum(result.values()) == pytest.approx(1, abs=0.01)
            labels = np.asarray(Image.open(tmp_path / 'out' / f'{below}.labels.png'))
            assert labels.shape == picture.shape[:2]
            classes = ('other', *ADE20KDataset.METAINFO['classes'])  # as in ADE20K's files
            assert {classes[i] for i in np.unique(labels)} == set(result)


@pytest.mark.parametrize('config', [DET_CONFIG, SEG_CONFIG])
def test_a_batch_finds_what_one_at_a_time_does(
    config: str, tmp_path: Path, small: dict[str, list[str]], checkpoints: dict[str, Path],
    run_tool: Callable[..., int],
) -> None:  # fmt: skip
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(96, 128), (96, 128), (128, 96)]):
        write_image(tmp_path / f'in/{i}.png', rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    found = []
    for size in (1, 2):
        out = tmp_path / f'out{size}'
        status = run_tool(
            'image_demo', config, checkpoints[config], tmp_path / 'in', '--out-dir', out,
            '--batch-size', size, '--score-thr', '0', '--cfg-options', *small[config],
        )  # fmt: skip
        assert status == 0
        found.append(json.loads((out / 'predictions.json').read_text()))
    one, batch = found
    assert list(one) == list(batch)
    for name, results in one.items():
        if config == SEG_CONFIG:
            assert batch[name] == pytest.approx(results, abs=2e-3)
            continue
        for a, b in zip(results, batch[name], strict=True):
            assert a['class'] == b['class']
            assert a['score'] == pytest.approx(b['score'], abs=2e-4)
            assert a['box_xyxy'] == pytest.approx(b['box_xyxy'], abs=0.2)


@pytest.mark.parametrize('config', [DET_CONFIG, SEG_CONFIG])
def test_tiles(
    config: str, tmp_path: Path, tiny_coco: Path, small: dict[str, list[str]],
    checkpoints: dict[str, Path], run_tool: Callable[..., int],
) -> None:  # fmt: skip
    image = tiny_coco / 'val2017/000000000001.jpg'
    height, width = cv2.imread(str(image)).shape[:2]
    status = run_tool(
        'image_demo', config, checkpoints[config], image, '--out-dir', tmp_path, '--masks',
        '--score-thr', '0', '--tile', 64, '--overlap', '0.5', '--batch-size', 2,
        '--cfg-options', *small[config],
    )  # fmt: skip
    assert status == 0
    (result,) = json.loads((tmp_path / 'predictions.json').read_text()).values()
    if config == DET_CONFIG:
        assert len(result) > 5  # as many as one tile shows
        boxes = np.array([each['box_xyxy'] for each in result])
        assert (boxes.max(axis=0)[2:] > [width - 20, height - 20]).all()
        assert {tuple(each['mask']['size']) for each in result} == {(height, width)}
    else:
        labels = np.asarray(Image.open(tmp_path / '000000000001.jpg.labels.png'))
        assert labels.shape == (height, width)
        assert sum(result.values()) == pytest.approx(1, abs=0.01)


def folder_with_one_good_image(folder: Path, good: Path) -> list[Path]:
    """Files that are no images in every way, and between them one that is; returns the former."""
    content = good.read_bytes()
    folder.mkdir()
    broken = {
        'a_empty.jpg': b'',
        'b_half.jpg': content[: len(content) // 2],
        'c_text.jpg': b'no image, but called one',
        'e_bomb.png': png_header(100_000, 100_000),
        'f_web_page.png': b'<!doctype html>',
    }
    for name, data in broken.items():
        (folder / name).write_bytes(data)
    (folder / 'd_good.jpg').write_bytes(content)
    (folder / 'g_folder.jpg').mkdir()
    (folder / 'h_astray.jpg').symlink_to(folder / 'nowhere')
    return [path for path in sorted(folder.iterdir()) if path.name != 'd_good.jpg']


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG of that size."""
    head = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + head + struct.pack('>I', crc32(head))


def test_what_is_no_image_is_named_and_the_others_are_done(
    tmp_path: Path, tiny_coco: Path, checkpoints: dict[str, Path], run_tool: Callable[..., int],
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    folder = tmp_path / 'images'
    broken = folder_with_one_good_image(folder, tiny_coco / 'val2017/000000000001.jpg')
    status = run_tool(
        'image_demo', SEG_CONFIG, checkpoints[SEG_CONFIG], folder, '--out-dir', tmp_path / 'out',
        '--cfg-options', *SMALL_SEG,
    )  # fmt: skip
    assert status == 2
    errors = capfd.readouterr().err
    assert 'Traceback' not in errors
    for path in broken:
        assert errors.count(f'{path}: ') == 1
        assert re.search(rf'{path}: .+; left out', errors)
    assert f'error: {len(broken)} of {len(broken) + 1} inputs could not be read' in errors
    found = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert list(found) == [str(folder / 'd_good.jpg')]
    assert (tmp_path / 'out/d_good.jpg.png').is_file()


def test_images_of_one_name_have_a_picture_each(
    tmp_path: Path, tiny_coco: Path, checkpoints: dict[str, Path], run_tool: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    sources = sorted((tiny_coco / 'val2017').iterdir())
    images = ['a/x.jpg', 'b/x.jpg', 'b/x.png']
    for name, source in zip(images, sources, strict=False):
        write_image(tmp_path / name, cv2.imread(str(source)))
    status = run_tool(
        'image_demo', SEG_CONFIG, checkpoints[SEG_CONFIG], 'a', 'b', 'b/x.jpg', './b/x.jpg',
        '--out-dir', 'out', '--cfg-options', *SMALL_SEG,
    )  # fmt: skip
    assert status == 0
    assert list(json.loads(Path('out/predictions.json').read_text())) == images
    pictures = {str(p.relative_to('out')) for p in Path('out').rglob('*.png')}
    assert pictures == {'a/x.jpg.png', 'b/x.jpg.png', 'b/x.png.png'}


def test_a_place_that_cannot_be_written_is_said_before_anything_is_built(
    tmp_path: Path, tiny_coco: Path, checkpoints: dict[str, Path], run_tool: Callable[..., int],
    capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(load_tool('image_demo'), 'build', None)
    (tmp_path / 'file').write_text('')
    status = run_tool(
        'image_demo', SEG_CONFIG, checkpoints[SEG_CONFIG], tiny_coco / 'val2017',
        '--out-dir', tmp_path / 'file',
    )  # fmt: skip
    assert status == 2
    assert capfd.readouterr().err.startswith(f'error: --out-dir {tmp_path / "file"}: ')


@pytest.mark.parametrize(
    ('images', 'expected'), [('absent.jpg', 'no such file or folder'), ('.', 'no images in this')]
)
def test_no_images(
    images: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    checkpoints: dict[str, Path], run_tool: Callable[..., int], capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run_tool('image_demo', SEG_CONFIG, checkpoints[SEG_CONFIG], images) == 2
    assert expected in capfd.readouterr().err


def test_checkpoint_of_another_model(
    tmp_path: Path, tiny_coco: Path, checkpoints: dict[str, Path], run_tool: Callable[..., int],
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    status = run_tool(
        'image_demo', SEG_CONFIG, checkpoints[DET_CONFIG], tiny_coco / 'val2017',
        '--out-dir', tmp_path / 'out',
    )  # fmt: skip
    assert status == 2
    errors = [x for x in capfd.readouterr().err.splitlines() if x.startswith('error: ')]
    assert len(errors) == 1
    assert str(checkpoints[DET_CONFIG]) in errors[0]
    assert not (tmp_path / 'out').exists()
