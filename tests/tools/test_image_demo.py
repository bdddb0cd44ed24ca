"""tools/image_demo.py: a picture an image, one JSON file, for both kinds of model."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from conftest import DET_CONFIG, SEG_CONFIG


@pytest.mark.parametrize('config', [DET_CONFIG, SEG_CONFIG])
def test_pictures_and_findings(
    config: str, tmp_path: Path, tiny_coco: Path, tiny_det: list[str],
    checkpoints: dict[str, Path], run_tool: Callable[..., int],
) -> None:  # fmt: skip
    few = [o for o in tiny_det if o.startswith('model.test_cfg') or 'test_dataloader.dat' in o]
    options = few if config == DET_CONFIG else ['test_dataloader.dataset.pipeline.1.scale=(128,96)']
    folder = tiny_coco / 'val2017'
    one = tiny_coco / 'train2017/000000000002.jpg'
    status = run_tool(
        'image_demo', config, checkpoints[config], folder, one, '--out-dir', tmp_path / 'out',
        '--score-thr', '0', '--cfg-options', *options,
    )  # fmt: skip
    assert status == 0
    found = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert set(found) == {str(one), *map(str, folder.iterdir())}
    for path, result in found.items():
        picture = cv2.imread(str(tmp_path / 'out' / f'{Path(path).name}.png'))
        assert picture.shape == cv2.imread(path).shape
        if config == DET_CONFIG:
            assert len(result) == 5
            assert set(result[0]) == {'class', 'score', 'box_xyxy'}
        else:
            assert sum(result.values()) == pytest.approx(1, abs=0.01)


def test_image_that_does_not_decode_leaves_the_others_done(
    tmp_path: Path, tiny_coco: Path, checkpoints: dict[str, Path], run_tool: Callable[..., int],
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    broken = tmp_path / 'broken.jpg'
    broken.write_bytes(b'')
    good = tiny_coco / 'val2017/000000000001.jpg'
    status = run_tool(
        'image_demo', SEG_CONFIG, checkpoints[SEG_CONFIG], broken, good, '--out-dir', tmp_path,
        '--cfg-options', 'test_dataloader.dataset.pipeline.1.scale=(128,96)',
    )  # fmt: skip
    assert status == 2
    errors = capfd.readouterr().err
    assert f'{broken}: no image that can be decoded' in errors
    assert 'error: 1 of 2 images could not be read' in errors
    assert list(json.loads((tmp_path / 'predictions.json').read_text())) == [str(good)]


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
