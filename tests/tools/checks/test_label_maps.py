"""Label maps: what is in them, whether they fit their images, and data of a user's own."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from own_data import ROOT, OwnData
from support import checks
from tiny_data import SIZES, write_image

from backbone.engine import apply_keys

DOCS = ROOT / 'docs/checks.md'

OWN = [
    'train_dataloader.dataset.type=BaseSegDataset',
    "train_dataloader.dataset.metainfo.classes=['ground','cat','dog','bird']",
    'model.decode_head.num_classes=4',
]
"""Data of four classes of one's own."""


def label_map(data: OwnData, number: int = 2) -> Path:
    return data.root / f'annotations/training/{number:08}.png'


def put(data: OwnData, labels: np.ndarray, number: int = 2) -> Path:
    path = label_map(data, number)
    write_image(path, labels)
    return path


def striped(number: int = 2, dtype: type = np.uint8) -> np.ndarray:
    """Labels 0 to 3."""
    height, width = SIZES[number - 1]
    return np.broadcast_to(np.arange(width) * 4 // width, (height, width)).astype(dtype)


def test_good_data_pass_and_say_what_is_not_there(own_ade: OwnData) -> None:
    assert own_ade.said(splits=('train', 'val', 'test'))[0] == (
        "train_dataloader.dataset: 4 images; no pixel of 'floor', 'tree', 'ceiling', 'road', "
        "'bed ' and 142 more"
    )


def test_missing_label_map(own_ade: OwnData) -> None:
    label_map(own_ade).unlink()
    line = own_ade.refusal()
    assert f'{label_map(own_ade)}: listed, but there is no such file' in line


def test_label_map_of_another_suffix_is_found(own_ade: OwnData) -> None:
    other = label_map(own_ade).with_name('00000002_labels.png')
    label_map(own_ade).rename(other)
    assert f'there is {other}: set seg_map_suffix' in own_ade.refusal()


def test_images_of_another_suffix_are_found(own_ade: OwnData) -> None:
    for image in (own_ade.root / 'images/training').iterdir():
        image.rename(image.with_suffix('.jpeg'))
    line = own_ade.refusal()
    assert "images/training: no image *.jpg in it; it has '.jpeg': set img_suffix" in line
    own_ade.check('train_dataloader.dataset.img_suffix=.jpeg', splits=('train',))


def test_folder_without_images(own_ade: OwnData) -> None:
    shutil.rmtree(own_ade.root / 'images/training')
    (own_ade.root / 'images/training').mkdir()
    assert 'images/training: no image *.jpg in it' in own_ade.refusal()


def test_missing_folder(own_ade: OwnData) -> None:
    shutil.rmtree(own_ade.root / 'annotations/training')
    assert f'{own_ade.root}/annotations/training: no such file or directory' in own_ade.refusal()


def test_label_out_of_range(own_ade: OwnData) -> None:
    path = put(own_ade, striped() + 150)  # 0 to 152 where 1 to 150 are classes
    line = own_ade.refusal()
    assert f'{path}: has the label 150, 151, 152 (after reduce_zero_label took 1 off)' in line
    assert '150 classes, so labels are 0 to 149, or 255 for no class' in line


def test_labels_for_no_class_pass(own_ade: OwnData) -> None:
    labels = striped()
    labels[:4] = 255
    put(own_ade, labels)
    own_ade.check()


def test_label_of_more_than_8_bits(own_ade: OwnData) -> None:
    """mmseg would take 256 for 0."""
    path = put(own_ade, striped(dtype=np.uint16) * 256)
    assert f'{path}: has the label 768' in own_ade.refusal()


def test_labels_in_16_bits_that_fit_pass(own_ade: OwnData) -> None:
    put(own_ade, striped(dtype=np.uint16))
    own_ade.check()


def test_label_map_in_colours(own_ade: OwnData) -> None:
    path = put(own_ade, np.stack([striped()] * 3, -1))
    line = own_ade.refusal()
    assert f'{path}: an image of 3 channels, not a label map; it must have one channel' in line


def test_palette_passes(own_ade: OwnData) -> None:
    from PIL import Image

    image = Image.fromarray(striped()).convert('P')
    image.putpalette(list(range(256)) * 3)
    image.save(label_map(own_ade))
    own_ade.check()


def test_label_map_of_another_size_than_its_image(own_ade: OwnData) -> None:
    path = put(own_ade, striped(3))
    line = own_ade.refusal()
    assert f'{path}: is 96 x 96 pixels, but its image' in line
    assert '00000002.jpg is 96 x 128' in line


def test_label_map_that_does_not_decode(own_ade: OwnData) -> None:
    label_map(own_ade).write_bytes(label_map(own_ade).read_bytes()[:30])
    assert f'{label_map(own_ade)}: no label map that can be decoded' in own_ade.refusal()


def test_labels_of_a_test_set_without_truth_are_not_looked_for(own_ade: OwnData) -> None:
    shutil.rmtree(own_ade.root / 'annotations/validation')
    cfg = own_ade.cfg()
    pipeline = cfg.test_dataloader.dataset.pipeline
    cfg.test_dataloader.dataset.pipeline = [s for s in pipeline if s.type != 'LoadAnnotations']
    cfg.test_evaluator = dict(type='IoUMetric', format_only=True, output_dir='out')
    checks.check_data(cfg, ('test',))


def test_own_data_as_the_docs_say_pass(own_ade: OwnData) -> None:
    (example,) = re.findall(r'```python\n(.*?)```', DOCS.read_text(), re.DOTALL)
    path = own_ade.root / 'own_segmentation.py'
    path.write_text(example.replace('./seg_configs', str(ROOT / 'seg_configs')))
    for split in ('training', 'validation'):
        for labels in (own_ade.root / 'annotations' / split).iterdir():
            write_image(labels, cv2.imread(str(labels), cv2.IMREAD_UNCHANGED) % 3)
    cfg = Config.fromfile(path)
    cfg.data_root = str(own_ade.root)
    checks.check_data(apply_keys(cfg), ('train', 'val', 'test'))


def test_own_data_say_nothing_of_absent_classes_where_all_are_there(own_ade: OwnData) -> None:
    assert own_ade.said(*OWN, splits=('train',)) == ['train_dataloader.dataset: 4 images']


def test_own_classes_under_anothers_name(own_ade: OwnData) -> None:
    line = own_ade.refusal(OWN[1])
    assert "ADE20KDataset has no class 'ground', 'cat', 'dog' and 1 more" in line
    assert "data of your own are of type='BaseSegDataset'" in line


def test_a_choice_of_anothers_classes_passes(own_ade: OwnData) -> None:
    classes = "train_dataloader.dataset.metainfo.classes=['wall','sky']"
    own_ade.check(classes, 'model.decode_head.num_classes=2', splits=('train',))


def test_reduce_zero_label_of_two_minds(own_ade: OwnData) -> None:
    said = 'train_dataloader.dataset.pipeline.1.reduce_zero_label=True'
    line = own_ade.refusal(*OWN, said, splits=('train',))
    assert '00000001.png' in line
    assert 'reduce_zero_label' in line


def test_black_and_white_maps_leave_nothing_to_tell_apart(own_ade: OwnData) -> None:
    for number in range(1, 1 + len(SIZES)):
        put(own_ade, np.where(striped(number) > 1, 255, 0).astype(np.uint8), number)
    two = ["train_dataloader.dataset.metainfo.classes=['ground','cat']"]
    line = own_ade.refusal(OWN[0], *two, 'model.decode_head.num_classes=2', splits=('train',))
    assert 'its label maps have the labels 0, 255 alone' in line
    assert 'label 255 means no class: number the classes 0, 1' in line


def test_stuff_of_a_detector_is_held_against_its_semantic_head(own_coco: OwnData) -> None:
    """As HTC's: the number of classes of stuff is another than that of things."""
    for number, (height, width) in enumerate(SIZES, start=1):
        write_image(
            own_coco.root / f'stuff/{number:012}.png', np.full((height, width), 182, np.uint8)
        )
    cfg = own_coco.cfg()
    dataset = cfg.train_dataloader.dataset
    dataset.data_prefix.seg = 'stuff/'
    dataset.pipeline[1].with_seg = True
    for classes in (183, 182):
        cfg.model.roi_head.semantic_head = dict(type='FusedSemanticHead', num_classes=classes)
        if classes == 183:
            checks.check_data(cfg, ('train',))
        else:
            with pytest.raises(checks.UserError, match='has the label 182; there are 182 classes'):
                checks.check_data(cfg, ('train',))
