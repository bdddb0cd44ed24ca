"""Bad data is named in one line, with the file and what to change, before anything is built."""

import copy
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import DET_CONFIG, ROOT, SEG_CONFIG
from mmengine.config import Config, DictAction
from support import checks
from support.cli import UserError

from backbone.engine import apply_keys

TRAIN = 'annotations/instances_train2017.json'


@cache
def read(name: str) -> Config:
    return Config.fromfile(ROOT / name)


def config(name: str, options: list[str]) -> Config:
    cfg = copy.deepcopy(read(name))
    for option in options:
        key, value = option.split('=', 1)
        cfg.merge_from_dict({key: DictAction._parse_iterable(value)})
    return apply_keys(cfg)


@pytest.fixture
def coco(tiny_coco: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set to spoil."""
    return Path(shutil.copytree(tiny_coco, tmp_path / 'coco'))


@pytest.fixture
def refused(coco: Path, tiny_det: list[str]) -> Callable[..., str]:
    """The line that the copy's data sets are refused with."""

    def check(*options: str, splits: tuple[str, ...] = ('train', 'val')) -> str:
        cfg = config(DET_CONFIG, [*tiny_det, f'data_root={coco}', *options])
        with pytest.raises(UserError) as refusal:
            checks.check_data(cfg, splits)
        line = str(refusal.value)
        assert '\n' not in line
        return line

    return check


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_good_data_passes(tiny_det: list[str], tiny_seg: list[str]) -> None:
    checks.check_data(config(DET_CONFIG, tiny_det), ('train', 'val', 'test'))
    checks.check_data(config(SEG_CONFIG, tiny_seg), ('train', 'val', 'test'))


def test_real_coco_passes(coco_root: Path) -> None:
    checks.check_data(config(DET_CONFIG, [f'data_root={coco_root}']), ('train', 'val', 'test'))


def test_real_ade_passes(ade_root: Path) -> None:
    checks.check_data(config(SEG_CONFIG, [f'data_root={ade_root}']), ('train', 'val', 'test'))


def test_missing_data_set_names_the_key_to_change(refused: Callable[..., str]) -> None:
    line = refused('data_root=/absent/coco')
    assert f'/absent/coco/{TRAIN}: no such file' in line
    assert '--cfg-options data_root=DIR' in line


def test_missing_image_folder(refused: Callable[..., str], coco: Path) -> None:
    shutil.rmtree(coco / 'train2017')
    assert 'train2017' in refused()


def assert_names_the_file(
    content: bytes, expected: str, refused: Callable[..., str], coco: Path
) -> None:
    (coco / TRAIN).write_bytes(content)
    line = refused()
    assert str(coco / TRAIN) in line
    assert expected in line


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (b'<html>log in</html>', 'no COCO annotation file: not JSON'),
        (b'', 'no COCO annotation file: not JSON'),
        (b'\xff\xfe\x00', 'no COCO annotation file: not JSON'),
        (b'{"images": [', 'no COCO annotation file: not JSON'),
        (b'[' * 100_000, 'no COCO annotation file: not JSON'),
        (b'[1, 2]', 'a JSON list, not an object'),
        (b'{"shapes": [], "version": 1}', "no list \"images\"; its keys are ['shapes', 'version']"),
        (b'{"images": []}', 'no list "annotations"'),
        (b'{"images": [], "annotations": []}', 'no list "categories"'),
        (b'{"images": [{"id": 1}], "annotations": [], "categories": []}', 'has no file_name'),
        (b'{"images": [7], "annotations": [], "categories": []}', 'images[0]'),
    ],
)
def test_annotations_that_are_no_coco_json(
    content: bytes, expected: str, refused: Callable[..., str], coco: Path
) -> None:
    assert_names_the_file(content, expected, refused, coco)


@pytest.fixture
def _too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """No annotation file is small enough to be read twice."""
    monkeypatch.setattr(checks.coco, 'READ_UP_TO', 0)


@pytest.mark.usefixtures('_too_large')
def test_large_annotations_that_are_good_pass(tiny_det: list[str]) -> None:
    checks.check_data(config(DET_CONFIG, tiny_det), ('train', 'val', 'test'))


@pytest.mark.usefixtures('_too_large')
@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (b'<html>log in</html>', "not JSON: it begins with b'<html>log in</ht'"),
        (b'version https://git-lfs.github.com/spec/v1\n', "it begins with b'version https://'"),
        (b'{"images": [{"id": 1', 'cut short: it ends with'),
        (b'{"images": []}\n', 'no list "annotations"'),
        (b'{"images": [{{"id": 1}]}', 'not JSON: Expecting property name'),
        (b'{"images" : [], "annotations":[]}', 'no list "categories"'),
        (b'{"annotations": [], "categories": [], "images": {}}', 'no list "images"'),
        (b'{"images": [{"id": 1}], "annotations": [], "categories": []}', 'has no file_name'),
        (b'{"images": [7], "annotations": [], "categories": []}', 'images[0]'),
    ],
)
def test_large_annotations_that_are_no_coco_json(
    content: bytes, expected: str, refused: Callable[..., str], coco: Path
) -> None:
    assert_names_the_file(content, expected, refused, coco)


@pytest.mark.usefixtures('_too_large')
def test_large_annotations_are_held_against_the_config(
    refused: Callable[..., str], coco: Path
) -> None:
    assert 'in that order' in refused("train_dataloader.dataset.metainfo.classes=['car','person']")
    edit(coco / TRAIN, lambda content: content['annotations'][1].pop('segmentation'))
    assert 'annotations[1] has no segmentation' in refused()
    edit(coco / TRAIN, lambda content: content['annotations'].clear())
    assert 'has no annotations to train on' in refused()


@pytest.mark.usefixtures('_too_large')
def test_large_annotations_name_images_that_are_absent(
    refused: Callable[..., str], coco: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (coco / 'train2017/000000000002.jpg').unlink()
    assert '000000000002.jpg: listed, but there is no such file' in refused()
    monkeypatch.setattr(checks.coco, 'SKIM_ROWS', 1)  # looks no further than the first
    cfg = copy.deepcopy(read(DET_CONFIG))
    cfg.merge_from_dict({'data_root': str(coco)})
    checks.check_data(apply_keys(cfg), ('train',))


@pytest.mark.parametrize('field', ['bbox', 'area', 'category_id', 'segmentation'])
def test_annotation_without_a_field(field: str, refused: Callable[..., str], coco: Path) -> None:
    edit(coco / TRAIN, lambda content: content['annotations'][1].pop(field))
    assert f'annotations[1] has no {field}' in refused()


def test_class_names_that_the_file_has_not(refused: Callable[..., str]) -> None:
    line = refused("train_dataloader.dataset.metainfo.classes=['person','wombat']")
    assert "has no category 'wombat'" in line
    assert 'train_dataloader.dataset.metainfo.classes' in line


def test_classes_in_another_order_than_the_files(refused: Callable[..., str]) -> None:
    assert 'in that order' in refused("train_dataloader.dataset.metainfo.classes=['car','person']")


def test_classes_that_are_one_string(refused: Callable[..., str]) -> None:
    assert "write ['person']" in refused('train_dataloader.dataset.metainfo.classes=person')


def test_heads_with_another_number_of_classes(refused: Callable[..., str]) -> None:
    line = refused("train_dataloader.dataset.metainfo.classes=['person','car']")
    assert 'num_classes=80' in line
    assert 'has 2 classes' in line


def test_two_classes_everywhere_pass(coco: Path, tiny_det: list[str]) -> None:
    heads = [f'model.roi_head.{head}.num_classes=2' for head in ('bbox_head', 'mask_head')]
    splits = [
        f"{split}_dataloader.dataset.metainfo.classes=['person','car']"
        for split in ('train', 'val', 'test')
    ]
    cfg = config(DET_CONFIG, [*tiny_det, f'data_root={coco}', *heads, *splits])
    checks.check_data(cfg, ('train', 'val', 'test'))


def test_image_that_is_listed_but_absent(refused: Callable[..., str], coco: Path) -> None:
    (coco / 'train2017/000000000002.jpg').unlink()
    assert '000000000002.jpg: listed, but there is no such file' in refused()


def test_image_that_is_empty(refused: Callable[..., str], coco: Path) -> None:
    (coco / 'train2017/000000000002.jpg').write_bytes(b'')
    assert '000000000002.jpg: the file is empty' in refused()


def test_image_that_does_not_decode(refused: Callable[..., str], coco: Path) -> None:
    (coco / 'train2017/000000000001.jpg').write_bytes(b'no picture')
    assert '000000000001.jpg: no image that can be decoded' in refused()


def test_metric_that_reads_another_file_than_the_data_set(
    refused: Callable[..., str], coco: Path
) -> None:
    line = refused(f'val_evaluator.ann_file={coco / TRAIN}')
    assert 'change both' in line


def test_missing_label_map(tiny_ade: Path, tiny_seg: list[str], tmp_path: Path) -> None:
    ade = Path(shutil.copytree(tiny_ade, tmp_path / 'ade'))
    lost = sorted((ade / 'annotations/training').iterdir())[1]
    lost.unlink()
    with pytest.raises(UserError, match=f'{lost}: listed, but there is no such file'):
        checks.check_data(config(SEG_CONFIG, [*tiny_seg, f'data_root={ade}']), ('train',))


def test_segmentation_folder_without_images(tiny_seg: list[str], tmp_path: Path) -> None:
    for kind in ('images', 'annotations'):
        (tmp_path / kind / 'training').mkdir(parents=True)
    with pytest.raises(UserError, match=r'no image \*\.jpg in it'):
        checks.check_data(config(SEG_CONFIG, [*tiny_seg, f'data_root={tmp_path}']), ('train',))


def test_segmentation_heads_with_another_number_of_classes(tiny_seg: list[str]) -> None:
    cfg = config(SEG_CONFIG, [*tiny_seg, 'model.decode_head.num_classes=19'])
    with pytest.raises(UserError, match=r'decode_head.num_classes=19, but .* 150 classes'):
        checks.check_data(cfg, ('train',))


def test_no_annotations_end_training_before_it_starts(
    coco: Path, tiny_det: list[str], tmp_path: Path, run_tool: Callable[..., int],
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    edit(coco / TRAIN, lambda content: content['annotations'].clear())
    arguments = ('--work-dir', tmp_path, '--cfg-options', *tiny_det, f'data_root={coco}')
    assert run_tool('train', DET_CONFIG, *arguments) == 2
    assert 'has no annotations to train on' in capfd.readouterr().err


def test_image_that_breaks_in_a_worker_is_named(
    coco: Path, tiny_det: list[str], tmp_path: Path, run_tool: Callable[..., int],
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """The second of four: the check up front decodes the first and the third."""
    broken = coco / 'train2017/000000000002.jpg'
    pixels = np.zeros((8, 8, 3), np.uint8)
    broken.write_bytes(cv2.imencode('.jpg', pixels)[1].tobytes()[:40])
    options = [*tiny_det, f'data_root={coco}', 'train_dataloader.num_workers=1']
    assert run_tool('train', DET_CONFIG, '--work-dir', tmp_path, '--cfg-options', *options) == 2
    errors = capfd.readouterr().err
    assert f'error: {broken}: no image that can be decoded' in errors
    assert 'Traceback' not in errors


def test_label_map_that_breaks_on_the_way_is_named(
    tiny_ade: Path, tiny_seg: list[str], tmp_path: Path,
    run_tool: Callable[..., int], capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    ade = Path(shutil.copytree(tiny_ade, tmp_path / 'ade'))
    broken = sorted((ade / 'annotations/training').iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:30])
    options = [*tiny_seg, f'data_root={ade}', 'train_dataloader.num_workers=1']
    assert run_tool('train', SEG_CONFIG, '--work-dir', tmp_path, '--cfg-options', *options) == 2
    assert f'{broken}: no label map that can be decoded' in capfd.readouterr().err
