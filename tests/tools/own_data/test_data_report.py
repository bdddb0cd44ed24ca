"""What is said and shown of a data set."""

import json
from collections.abc import Callable
from pathlib import Path

import copies
import cv2
import numpy as np
import pytest
from conftest import call_tool
from support.own_data import picture


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def said(data: Path, capsys: pytest.CaptureFixture, *options: object) -> list[str]:
    capsys.readouterr()
    assert call_tool('new_config', data, data.parent / 'out.py', *options) == 0
    return [' '.join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_images_objects_sizes_and_what_is_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = copies.write_coco(tmp_path / 'data')

    def spoil(content: dict) -> None:
        rows = content['annotations']
        rows[0]['bbox'][2] = 0.4
        rows[1]['iscrowd'] = 1
        rows[2]['bbox'] = [0, 0, 96, 128]
        rows[2]['area'] = 96 * 128

    edit(data / 'train.json', spoil)
    lines = said(data, capsys, '--head', 'retinanet')
    kept = sum(len(copies.outlines('train', dict(id=i))) for i in range(1, 5)) - 2
    val = len(copies.outlines('val', dict(id=1)))
    for line in (
        'train val',
        'images 4 2',
        f'objects that train {kept} {val}',
        'person 2 1',
        'car 2 1',
        'large, from 96 x 96 1 0',
        'train: of 6 objects train nothing: 1 narrower than 1 pixel, 1 crowds',
        'train: 2 images without an object to train',
        'image sizes: 128 x 96 (2), 120 x 80 (2), 96 x 128 (1), 1 other, from 96 x 96 to 96 x 128',
    ):
        assert line in lines, line
    assert any(line.endswith(': boxes and masks, 2 classes') for line in lines)
    drawn = cv2.imread(str(tmp_path / 'out.png'))
    assert drawn.shape[1] > 900
    assert np.std(drawn) > 10
    (tmp_path / 'out.py').unlink()
    said(data, capsys)  # draws it anew: it is its own


@pytest.fixture
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, 'draw', lambda *_: None)


@pytest.mark.usefixtures('_no_picture')
def test_objects_that_are_too_small_at_the_size_of_the_training_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = copies.write_coco(tmp_path / 'data')
    small = [line for line in said(data, capsys, '--size', 16) if 'can be learnt' in line]
    assert small
    assert small[0].startswith('6 of 6 objects to train on are less than 8 pixels')
    (tmp_path / 'out.py').unlink()
    assert not [line for line in said(data, capsys, '--size', 256) if 'can be learnt' in line]


@pytest.mark.usefixtures('_no_picture')
def test_some_masks_are_boxes_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = copies.write_coco(tmp_path / 'data')
    edit(data / 'train.json', lambda content: content['annotations'][3].pop('segmentation'))
    lines = said(data, capsys)
    assert '1 of 8 objects have no mask: boxes alone are used' in lines


def test_label_maps_are_counted_in_pixels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = copies.write_maps(tmp_path / 'data')
    lines = said(data, capsys, '--classes', 'left', 'middle', 'right', 'nowhere')
    assert 'images 4 2' in lines
    shares = [float(line.split()[1].rstrip('%')) for line in lines if line.startswith('left ')]
    assert shares == pytest.approx([33.3], abs=1)
    assert "nothing to train on of 'nowhere'" in lines
    assert np.std(cv2.imread(str(tmp_path / 'out.png'))) > 10
