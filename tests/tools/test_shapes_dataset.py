"""The built-in dataset: genuine COCO and ADE20K formats, right to the pixel, always the same."""

import contextlib
import io
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapes_dataset as shapes
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

COUNTS = dict(train=60, val=24)


def load(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes') / 'coco'
    assert shapes.make_dataset(folder, counts=COUNTS)
    return folder


@pytest.fixture(scope='module')
def coco(root):
    return {split: load(root / f'annotations/instances_{split}2017.json') for split in COUNTS}


@pytest.mark.parametrize('split', COUNTS)
def test_has_every_field_of_coco(root, coco, split):
    content = coco[split].dataset
    assert set(content) == {'info', 'licenses', 'categories', 'images', 'annotations'}
    assert [c['name'] for c in content['categories']] == list(shapes.CLASSES)
    assert len(content['images']) == COUNTS[split]
    for image in content['images']:
        picture = cv2.imread(str(root / f'{split}2017' / image['file_name']))
        assert picture.shape == (image['height'], image['width'], 3)
    fields = {'id', 'image_id', 'category_id', 'segmentation', 'area', 'bbox', 'iscrowd'}
    assert all(set(a) == fields for a in content['annotations'])
    assert len({a['id'] for a in content['annotations']}) == len(content['annotations'])


@pytest.mark.parametrize('split', COUNTS)
def test_masks_areas_and_boxes_are_the_visible_pixels(coco, split):
    """Decoded by pycocotools, every annotation is exactly the mask that was painted."""
    for index in range(COUNTS[split]):
        drawn = shapes.scene(split, index)
        written = coco[split].imgToAnns[index + 1]
        assert len(written) == len(drawn.shapes)
        seen = np.zeros((shapes.HEIGHT, shapes.WIDTH), int)
        for entry, shape in zip(written, drawn.shapes, strict=True):
            mask = coco[split].annToMask(entry)
            assert (mask == shape.mask).all()
            assert entry['area'] == mask.sum()
            assert entry['bbox'] == list(cv2.boundingRect(mask))
            seen += mask
        assert seen.max() <= 1, 'two objects claim one pixel'


def test_all_sizes_classes_occlusion_and_crowds_are_there(coco):
    entries = [a for split in COUNTS for a in coco[split].anns.values()]
    objects = [a for a in entries if not a['iscrowd']]
    areas = np.array([a['area'] for a in objects])
    sizes = [(areas < 32**2), (areas >= 32**2) & (areas < 96**2), (areas >= 96**2)]
    assert all(s.mean() > 0.08 for s in sizes), [s.mean() for s in sizes]
    assert {a['category_id'] for a in objects} == set(range(1, len(shapes.CLASSES) + 1))
    assert any(len(a['segmentation']) > 1 for a in objects), 'no object in several parts'
    crowds = [a for a in entries if a['iscrowd']]
    assert crowds
    for entry in crowds:
        assert set(entry['segmentation']) == {'counts', 'size'}
        assert sum(entry['segmentation']['counts']) == shapes.HEIGHT * shapes.WIDTH
    hidden = [s.mask.sum() < s.painted for i in range(60) for s in shapes.scene('train', i).shapes]
    assert 0.1 < np.mean(hidden) < 0.9, 'share of objects partly covered'


def test_a_mask_with_a_hole_is_cut_into_polygons_without(coco):
    mask = np.zeros((shapes.HEIGHT, shapes.WIDTH), bool)
    mask[20:90, 30:150] = True
    mask[40:60, 50:70] = mask[45:80, 100:101] = False
    entry = shapes.annotation(shapes.Shape(0, mask), image_id=1, number=1)
    assert len(entry['segmentation']) == 3
    assert (coco['train'].annToMask(entry) == mask).all()


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_truth_given_as_detections_scores_one(coco, kind):
    truth = coco['val']
    perfect = [
        dict(
            image_id=a['image_id'],
            category_id=a['category_id'],
            bbox=a['bbox'],
            segmentation=truth.annToRLE(a),
            score=1.0,
        )
        for a in truth.anns.values()
        if not a['iscrowd']
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(perfect), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)
    assert (evaluation.stats[3:6] > 0.999).all(), 'AP of small, medium and large objects'


def test_same_every_time(root, tmp_path):
    shapes.make_dataset(tmp_path / 'again', counts=COUNTS)
    first, second = ({p.relative_to(f) for f in (d,) for p in d.rglob('*') if p.is_file()}
                     for d in (root, tmp_path / 'again'))  # fmt: skip
    assert first == second
    for name in first:
        assert (root / name).read_bytes() == (tmp_path / 'again' / name).read_bytes(), name


def test_train_and_val_share_no_scene():
    train = {shapes.scene('train', i).image.tobytes() for i in range(8)}
    assert not train & {shapes.scene('val', i).image.tobytes() for i in range(8)}


def test_semantic_masks_are_the_same_scenes_in_ade_format(tmp_path):
    shapes.make_dataset(tmp_path / 'ade', ade=True, counts=dict(train=3, val=12))
    labels = sorted((tmp_path / 'ade/annotations/validation').glob('*.png'))
    assert len(list((tmp_path / 'ade/images/training').glob('*.jpg'))) == 3
    found = set()
    for index, path in enumerate(labels):
        image = tmp_path / 'ade/images/validation' / f'{path.stem}.jpg'
        assert image.is_file()
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        drawn = shapes.scene('val', index)
        for shape in drawn.shapes:
            assert (label[shape.mask] == shape.label + 2).all()
        assert (label[drawn.clutter] == 0).all()
        found |= set(np.unique(label))
    assert found == set(range(len(shapes.ADE_CLASSES) + 1))


def test_made_once_and_anew_when_the_counts_change(tmp_path):
    small, other = dict(train=1, val=1), dict(train=2, val=1)
    assert shapes.make_dataset(tmp_path / 'd', counts=small)
    assert not shapes.make_dataset(tmp_path / 'd', counts=small)
    assert shapes.make_dataset(tmp_path / 'd', counts=other)
    assert len(os.listdir(tmp_path / 'd/train2017')) == 2
    assert json.loads((tmp_path / 'd/shapes.json').read_text())['train'] == 2


def test_leaves_a_folder_that_is_not_its_own(tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/file').write_text('dear')
    with pytest.raises(FileExistsError, match='mine exists and is no shapes dataset'):
        shapes.make_dataset(tmp_path / 'mine', counts=dict(train=1, val=1))
    assert os.listdir(tmp_path) == ['mine']
