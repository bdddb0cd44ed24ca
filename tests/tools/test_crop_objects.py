"""Objects cut out of a COCO data set: which ones, where, and nothing lost."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from crop_objects import (
    BACKGROUND,
    BESIDE,
    PART,
    crop_objects,
    overlap,
    part_of,
    place_beside,
    square,
    write,
)
from mmengine.config import Config
from support.cli import UserError

DEMO = ROOT / 'cls_configs/shapes/rmt_t_shapes.py'

BOXES = {  # id: (category, box, crowd)
    'train': {
        1: (7, [10, 20, 40, 20], 0),
        2: (7, [100, 100, 20, 20], 0),
        3: (9, [60, 10, 30, 30], 0),
        4: (9, [0, 0, 8, 8], 0),  # small
        5: (9, [0, 0, 90, 90], 1),  # a crowd
        6: (3, [50, 50, 20, 20], 0),
    },
    'val': {7: (7, [10, 10, 20, 20], 0)},
}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """An image a split, whose pixels tell their place."""
    root = tmp_path / 'coco'
    y, x = np.mgrid[:128, :128].astype(np.uint8)
    (root / 'annotations').mkdir(parents=True)
    for split, boxes in BOXES.items():
        (root / f'{split}2017').mkdir()
        cv2.imwrite(str(root / f'{split}2017' / 'a.png'), np.stack([x, y, 0 * x], -1))
        content = dict(
            images=[dict(id=1, file_name='a.png', width=128, height=128)],
            categories=[dict(id=i, name=n) for i, n in ((3, 'owl'), (7, 'a cat'), (9, 'dog'))],
            annotations=[
                dict(id=i, image_id=1, category_id=c, bbox=box, iscrowd=crowd, area=1)
                for i, (c, box, crowd) in boxes.items()
            ],
        )
        path = root / 'annotations' / f'instances_{split}2017.json'
        path.write_text(json.dumps(content))
    return root


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob('*.jpg'))


def test_large_enough_objects_become_images_of_their_class(coco, tmp_path):
    out = tmp_path / 'crops'
    counts = crop_objects(coco, out, margin=0.1)
    assert files(out) == [
        'train/a_cat/1.jpg',
        'train/a_cat/2.jpg',
        'train/dog/3.jpg',
        'train/owl/6.jpg',
        'val/a_cat/7.jpg',
    ]
    assert counts == {
        ('train', 'a_cat'): 2,
        ('train', 'dog'): 1,
        ('train', 'owl'): 1,
        ('val', 'a_cat'): 1,
    }
    # the same folders in both splits, for classes are numbered by them
    assert {p.name for p in (out / 'val').iterdir()} == {'a_cat', 'dog', 'owl'}
    crop = cv2.imread(str(out / 'train/a_cat/2.jpg'))
    assert crop.shape == (24, 24, 3)
    assert np.abs(crop[..., :2].mean((0, 1)) - 109.5).max() < 1.5  # the middle of the box


def test_a_crop_is_a_square_around_the_box():
    assert square([10, 20, 40, 20], 0.1) == (6, 54, 6, 54)
    assert square([0, 0, 20, 40], 0) == (0, 40, -10, 30)
    assert square([100, 100, 28, 28], 0.5) == (86, 142, 86, 142)
    assert square([7, 9, 0.3, 0.2], 0) == (9, 10, 7, 8)


@pytest.mark.parametrize('box', [[0, 0, 20, 40], [100, 104, 28, 20], [10, -30, 60, 40]])
def test_beyond_the_image_a_crop_is_what_normalising_makes_zero(box, tmp_path):
    pixels = np.full((128, 128, 3), 255, np.uint8)
    assert write(pixels, box, 0.25, tmp_path / 'crop.png')
    top, bottom, left, right = square(box, 0.25)
    rows, columns = np.arange(top, bottom), np.arange(left, right)
    inside = np.outer((rows >= 0) & (rows < 128), (columns >= 0) & (columns < 128))
    crop = cv2.imread(str(tmp_path / 'crop.png'))
    assert (crop[inside] == 255).all()
    mean = Config.fromfile(DEMO).model.data_preprocessor.mean  # RGB
    assert np.abs(crop[~inside][:, ::-1] - mean).max() <= 0.5


@pytest.mark.parametrize('box', [[-50, 10, 20, 20], [10, 200, 20, 20]])
def test_a_box_outside_its_image_has_no_crop(box, tmp_path):
    assert not write(np.zeros((128, 128, 3), np.uint8), box, 0.25, tmp_path / 'crop.png')


def test_the_most_frequent_classes_are_kept_on_request(coco, tmp_path):
    crop_objects(coco, tmp_path / 'crops', classes=1)
    assert files(tmp_path / 'crops') == [
        'train/a_cat/1.jpg',
        'train/a_cat/2.jpg',
        'val/a_cat/7.jpg',
    ]


def test_what_is_there_stays_unless_it_is_of_other_options(coco, tmp_path, run_tool, capsys):
    out = tmp_path / 'crops'
    assert run_tool('crop_objects', coco, out, '--least-side', 32) == 0
    assert 'train: 1 crops (a_cat 1)' in capsys.readouterr().out
    (out / 'train' / 'a_cat' / '1.jpg').write_text('mine')
    assert run_tool('crop_objects', coco, out, '--least-side', 32) == 0
    assert 'already there' in capsys.readouterr().out
    assert (out / 'train' / 'a_cat' / '1.jpg').read_text() == 'mine'
    assert run_tool('crop_objects', coco, out) == 0
    assert len(files(out)) == 5


@pytest.mark.parametrize(
    ('spoil', 'said'),
    [
        (lambda coco, out: out.mkdir(), 'is there and holds no crops'),
        (lambda coco, out: (coco / 'val2017/a.png').write_text(''), 'no image that can be decoded'),
        (lambda coco, out: (coco / 'annotations/instances_val2017.json').unlink(), 'needed'),
    ],
    ids=['another folder', 'no image', 'no annotations'],
)
def test_a_mistake_ends_in_one_line_and_leaves_nothing_half(spoil, said, coco, tmp_path):
    out = tmp_path / 'crops'
    spoil(coco, out)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=said):
        crop_objects(coco, out)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize('option', [('--least-side', '0'), ('--classes', '0'), ('--margin', '2')])
def test_options_out_of_range_are_refused(option, coco, tmp_path, run_tool, capsys):
    assert run_tool('crop_objects', coco, tmp_path / 'x', *option) == 2
    assert f'error: {option[0]} {option[1]}' in capsys.readouterr().err.replace('.0:', ':')


def test_the_background_shows_no_object_whole_and_is_the_same_every_time(coco, tmp_path):
    counts = crop_objects(coco, tmp_path / 'one', background=True)
    crop_objects(coco, tmp_path / 'other', background=True)
    assert counts['train', BACKGROUND] > 2
    assert counts['train', 'a_cat'] == 2
    names = files(tmp_path / 'one')
    assert sum(BACKGROUND in name for name in names) == sum(
        n for (_, name), n in counts.items() if name == BACKGROUND
    )
    for name in names:
        assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'other' / name).read_bytes()


@pytest.mark.parametrize('seed', range(20))
def test_a_part_is_of_its_object_and_a_place_beside_of_none(seed):
    rng = np.random.RandomState(seed)
    boxes = [[40, 40, 30, 20], [20, 70, 40, 40]]
    part = part_of(boxes[0], boxes, (128, 128), rng)
    assert PART[0] < max(overlap(part, box) for box in boxes) < PART[1]
    x, y, w, h = place_beside(boxes, 16, (128, 160), rng)
    assert max(overlap([x, y, w, h], box) for box in boxes) < BESIDE
    assert x >= 0
    assert y >= 0
    assert x + w <= 160
    assert y + h <= 128
    assert place_beside([[0, 0, 32, 32]], 16, (24, 24), rng) is None


def test_overlap_is_intersection_over_union():
    assert overlap([0, 0, 10, 10], [5, 0, 10, 20]) == 50 / 250
    assert overlap([0, 0, 10, 10], [10, 0, 10, 10]) == 0
    assert overlap([0, 0, 0, 0], [0, 0, 0, 0]) == 0


def test_a_class_of_the_backgrounds_name_is_refused(coco, tmp_path):
    path = coco / 'annotations/instances_train2017.json'
    path.write_text(path.read_text().replace('"dog"', f'"{BACKGROUND}"'))
    with pytest.raises(UserError, match='leave out --background'):
        crop_objects(coco, tmp_path / 'crops', background=True)
    assert not (tmp_path / 'crops').exists()
