"""The same data in every format is trained on alike, and faults are named with their place."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import copies
import numpy as np
import pytest
import torch
from conftest import call_tool
from mmengine.registry import DATASETS, init_default_scope
from support.cli import UserError
from support.config import read_config
from support.own_data import picture, reading

Write = Callable[[Path], Path]
WITH_MASKS = [copies.write_yolo_masks, copies.write_labelme]
BOXES_ALONE = [copies.write_boxes_alone, copies.write_yolo, copies.write_voc]
name_of = dict(ids=lambda write: write.__name__.removeprefix('write_'))


def trained_on(data: Path, out: Path, *options: str) -> dict[str, dict]:
    """By image, what the model is given of each split, without chance."""
    assert call_tool('new_config', data, out, '--classes', *copies.CLASSES, *options) == 0
    cfg = read_config(str(out), {})
    init_default_scope('mmdet')
    found = {}
    for split in copies.SIZES:
        config = {**cfg[f'{split}_dataloader'].dataset, 'pipeline': cfg.test_pipeline}
        for packed in DATASETS.build(config):
            sample = packed['data_samples']
            found[Path(sample.img_path).name] = dict(
                image=packed['inputs'],
                boxes=sample.gt_instances.bboxes.tensor,
                labels=sample.gt_instances.labels,
                masks=sample.gt_instances.masks.masks if 'masks' in sample.gt_instances else None,
                size=sample.ori_shape,
            )
    return found


@pytest.fixture(scope='module', autouse=True)
def _no_picture() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture, 'draw', lambda *_: None)
        yield


@pytest.fixture(scope='module')
def as_coco(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    root = tmp_path_factory.mktemp('coco')
    return trained_on(copies.write_coco(root / 'data'), root / 'out.py')


def test_another_json_file_beside_is_no_annotation(tmp_path: Path) -> None:
    root = tmp_path / 'data'
    copies.write_coco(root)
    (root / 'dataset.json').write_text('{"dataset": "shapes", "version": 1}')
    assert reading.read(str(root)).format == 'COCO JSON'


@pytest.mark.parametrize('write', WITH_MASKS + BOXES_ALONE, **name_of)
def test_a_copy_is_trained_on_alike(write: Write, as_coco: dict[str, dict], tmp_path: Path) -> None:
    found = trained_on(write(tmp_path / 'data'), tmp_path / 'out.py')
    # of train the image without an object is left out, of val it is there
    assert found.keys() == as_coco.keys()
    assert len(found) == sum(map(len, copies.SIZES.values())) - 1
    for name, one in found.items():
        other = as_coco[name]
        assert torch.equal(one['image'], other['image'])
        assert torch.equal(one['labels'], other['labels'])
        torch.testing.assert_close(one['boxes'], other['boxes'], rtol=1e-6, atol=1e-6)
        assert (one['masks'] is None) == (write in BOXES_ALONE)
        if one['masks'] is not None:
            assert np.array_equal(one['masks'], other['masks'])


def test_data_without_a_split_is_split(tmp_path: Path) -> None:
    """VOC in one folder, without lists and with them."""
    data = copies.write_voc(tmp_path / 'data')
    for path in (data / 'val').iterdir():
        path.rename(data / 'train' / path.name)
    (data / 'val').rmdir()
    (data / 'train').rename(data / 'everything')
    found = reading.read(str(data))
    assert list(found.splits) == ['all']
    assert found.splits['all'].size == 6
    lists = data / 'ImageSets/Main'
    lists.mkdir(parents=True)
    for split, sizes in copies.SIZES.items():
        names = [f'{split}_{i}' for i in range(1, len(sizes) + 1)]
        (lists / f'{split}.txt').write_text('\n'.join(names))
    for path in (data / 'everything').iterdir():  # lists have no spaces in names
        path.rename(path.with_name(path.name.replace(' ', '_')))
    found = reading.read(str(data))
    assert {s: o.size for s, o in found.splits.items()} == dict(train=4, val=2)


def test_parts_of_a_group_are_one_object_and_other_shapes_are_told(tmp_path: Path) -> None:
    data = copies.write_labelme(tmp_path / 'data')
    path = data / 'train/train 1.json'
    told = json.loads(path.read_text())
    told['shapes'] = [
        dict(label='car', shape_type='polygon', group_id=3, points=[[1, 1], [5, 1], [5, 5]]),
        dict(label='car', shape_type='polygon', group_id=3, points=[[9, 9], [12, 9], [12, 20]]),
        dict(label='car', shape_type='rectangle', group_id=None, points=[[40, 50], [30, 20]]),
        dict(label='car', shape_type='circle', points=[[60, 60], [60, 64]]),
        dict(label='car', shape_type='rectangle', points=[[1, 2], [3, 2], [3, 9], [1, 9]]),
        dict(label='car', shape_type='line', points=[[1, 1], [2, 2]]),
    ]
    path.write_text(json.dumps(told))
    found = reading.read(str(data))
    rows = [r for r in found.splits['train'].content['annotations'] if r['image_id'] == 1]
    assert [row['bbox'] for row in rows[:2]] == [[1, 1, 11, 19], [30, 20, 10, 30]]
    assert [len(row['segmentation']) for row in rows] == [2, 1, 1, 1]
    assert rows[3]['bbox'] == [1, 2, 2, 7]
    assert rows[2]['bbox'] == pytest.approx([56, 56, 8, 8])
    assert rows[2]['area'] == pytest.approx(np.pi * 16, rel=0.01)
    assert '1 shapes of type line are left out' in found.notes


def yolo(line: str) -> Callable[[Path], None]:
    return lambda data: (data / 'labels/train/train 2.txt').write_text(f'0 .5 .5 .2 .2\n{line}\n')


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        text = (data / name).read_text()
        assert old in text
        (data / name).write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ('write', 'spoil', 'expected'),
    [
        (copies.write_yolo, yolo('2 .5 .5 .1 .1'), "line 2: begins with '2'; it must be"),
        (copies.write_yolo, yolo('cat .5 .5 .1 .1'), "line 2: begins with 'cat'"),
        (copies.write_yolo, yolo('0 .5 .5 .1'), 'line 2: has 3 numbers after the class'),
        (copies.write_yolo, yolo('0 .1 .1 .2 .1 .2 .2'), 'must have x, y, width, height'),
        (copies.write_yolo, yolo('0 .5 x .1 .1'), "line 2: could not convert string to float: 'x'"),
        (copies.write_yolo, yolo('0 64 48 20 20'), 'line 2: has the number 64; all must be parts'),
        (copies.write_yolo, yolo('0 .5 .5 -.005 .1'), 'line 2: has a negative width'),
        (copies.write_yolo_masks, yolo('0 .5 .5 .1 .1'), 'must have x and y of three corners'),
        (copies.write_yolo, replaced('data.yaml', 'names', 'classes'), 'nothing known in it'),
        (copies.write_yolo, replaced('data.yaml', '1: car', '7: car'), 'number them 0, 1, ...'),
        (copies.write_yolo, replaced('data.yaml', 'train: images/train', ''), 'has no train'),
        (copies.write_yolo, replaced('data.yaml', 'images/val', 'images/x'), 'images/x: no such'),
        (copies.write_voc, replaced('train/train 2.xml', '<xmin>', '<xmin>a'), 'object[0] (p'),
        (copies.write_voc, replaced('train/train 2.xml', '</object>', ''), 'train 2.xml: no XML'),
        (copies.write_voc, replaced('val/val 1.xml', '<name>car</name>', ''), 'object[1] has no'),
        (copies.write_voc, replaced('val/val 1.xml', '<width>', '<w>'), 'val 1.xml: no XML'),
        (copies.write_voc, replaced('val/val 1.xml', '<width>128', '<width>0'), "width='0'; it"),
        (copies.write_labelme, replaced('val/val 1.json', '"car"', '5'), 'shapes[1] has no label'),
        (copies.write_labelme, replaced('val/val 1.json', '[[', '[7, ['), 'shapes[0] (person): a '),
        (copies.write_labelme, replaced('val/val 1.json', '}', ''), 'val 1.json: not JSON'),
        (copies.write_labelme, lambda d: (d / 'val/val 1.jpg').unlink(), 'val 1.jpg is not there'),
        (copies.write_voc, lambda d: (d / 'val/val 1.jpg').unlink(), 'val 1.xml: its image val 1'),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_file_and_place(
    write: Write, spoil: Callable[[Path], object], expected: str, tmp_path: Path
) -> None:
    data = write(tmp_path / 'data')
    spoil(data)
    with pytest.raises(UserError) as refusal:
        reading.read(str(data))
    assert expected in str(refusal.value)
    assert str(data) in str(refusal.value)
    assert '\n' not in str(refusal.value)


def test_an_image_that_does_not_open_is_named(tmp_path: Path) -> None:
    data = copies.write_yolo(tmp_path / 'data')
    (data / 'images/train/train 2.jpg').write_bytes(b'no image')
    with pytest.raises(UserError, match=r'train 2\.jpg: no image that can be decoded'):
        reading.read(str(data))


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = copies.write_voc(tmp_path / 'data')
    monkeypatch.setitem(sys.modules, 'labelformat.formats.pascalvoc', None)
    with pytest.raises(UserError, match=r'is not installed.* with its extra \[own-data\]'):
        reading.read(str(data))
