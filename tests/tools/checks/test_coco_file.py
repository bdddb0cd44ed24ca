"""Annotation files that are no COCO JSON end in one line; large ones are skimmed, and read once."""

import json

import pytest
from own_data import OwnData
from support.checks import coco_file


def assert_names_the_file(content: bytes, expected: str, own_coco: OwnData) -> None:
    own_coco.annotations().write_bytes(content)
    line = own_coco.refusal()
    assert str(own_coco.annotations()) in line
    assert expected in line


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (b'<html>log in</html>', 'no COCO annotation file: not JSON'),
        (b'', 'no COCO annotation file: not JSON'),
        (b'\xff\xfe\x00', 'no COCO annotation file: not JSON'),
        (b'{"images": [', 'no COCO annotation file: not JSON'),
        (b'[' * 100_000, 'no COCO annotation file: not JSON'),
        (b'{"images": 1' + b'0' * 5000 + b'}', 'no COCO annotation file: not JSON'),
        (b'[1, 2]', 'a JSON list, not an object'),
        (b'{"shapes": [], "version": 1}', "no list \"images\"; its keys are ['shapes', 'version']"),
        (b'{"images": [], "annotations": {}}', 'no list "annotations"'),
        (b'{"images": [], "annotations": []}', 'no list "categories"'),
        (b'{"images": [], "annotations": [], "categories": []}', 'has no images'),
        (b'{"images": [{"id": 1}], "annotations": [], "categories": []}', 'has no file_name'),
        (b'{"images": [7], "annotations": [], "categories": []}', 'images[0] is no object'),
    ],
)
def test_annotations_that_are_no_coco_json(
    content: bytes, expected: str, own_coco: OwnData
) -> None:
    assert_names_the_file(content, expected, own_coco)


def test_byte_order_mark_comes_with_the_command_that_removes_it(own_coco: OwnData) -> None:
    content = own_coco.annotations().read_bytes()
    assert_names_the_file(b'\xef\xbb\xbf' + content, "sed -i '1s/^\\xef\\xbb\\xbf//'", own_coco)


@pytest.fixture
def _too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """No annotation file is small enough to be read twice."""
    monkeypatch.setattr(coco_file, 'READ_UP_TO', 0)


@pytest.mark.usefixtures('_too_large')
def test_large_annotations_that_are_good_pass_and_nothing_is_claimed(own_coco: OwnData) -> None:
    for line in own_coco.said(splits=('train', 'val', 'test')):
        assert 'only its beginning was looked at' in line
        assert 'objects' not in line


@pytest.mark.usefixtures('_too_large')
@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (b'<html>log in</html>', "not JSON: it begins with b'<html>log in</ht'"),
        (b'version https://git-lfs.github.com/spec/v1\n', "it begins with b'version https://'"),
        (b'{"images": [{"id": 1', 'cut short: it ends with'),
        (b'{"images": []}\n', 'no list "categories"'),
        (b'{"images": [{{"id": 1}]}', 'not JSON: Expecting property name'),
        (b'{"images" : [], "annotations":[]}', 'no list "categories"'),
        (b'{"annotations": [], "categories": [], "images": {}}', 'no list "images"'),
        (b'{"images": [{"id": 1}], "annotations": [], "categories": []}', 'has no file_name'),
        (b'{"images": [7], "annotations": [], "categories": []}', 'images[0]'),
    ],
)
def test_large_annotations_that_are_no_coco_json(
    content: bytes, expected: str, own_coco: OwnData
) -> None:
    assert_names_the_file(content, expected, own_coco)


@pytest.mark.usefixtures('_too_large')
def test_large_annotations_are_held_against_the_config(own_coco: OwnData) -> None:
    order = "train_dataloader.dataset.metainfo.classes=['car','person']"
    assert 'in that order' in own_coco.refusal(order)
    own_coco.edit(lambda content: content['annotations'][1].pop('segmentation'))
    assert 'annotations[1] (id 2, image 000000000001.jpg) has no segm' in own_coco.refusal()
    own_coco.edit(lambda content: content['annotations'].clear())
    assert 'has no annotations to train on' in own_coco.refusal()


@pytest.mark.usefixtures('_too_large')
def test_large_annotations_name_images_that_are_absent(
    own_coco: OwnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_coco.image(2).unlink()
    assert '000000000002.jpg: listed, but there is no such file' in own_coco.refusal()
    monkeypatch.setattr(coco_file, 'SKIM_ROWS', 1)  # looks no further than the first
    own_coco.check(splits=('train',))


@pytest.mark.usefixtures('_too_large')
def test_large_file_whose_first_objects_are_of_later_images_passes(
    own_coco: OwnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_coco.edit(lambda content: content['annotations'].reverse())
    monkeypatch.setattr(coco_file, 'SKIM_ROWS', 2)
    own_coco.check(splits=('train',))


def test_the_command_against_the_byte_order_mark_removes_it(own_coco: OwnData) -> None:
    import subprocess

    path = own_coco.annotations()
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content), encoding='utf-8-sig')
    command = own_coco.refusal().split('remove it: ')[1]
    subprocess.run(command, shell=True, check=True)
    assert json.loads(path.read_text()) == content
