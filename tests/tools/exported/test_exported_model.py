import json

import numpy as np
import pytest
import torch
from onnx_files import BRIGHTEST, CORNERS, DETECTOR, SEGMENTOR, write_onnx
from support.cli import UserError
from support.exported import ExportedModel
from support.exported.masks import paste
from support.exported.metadata import FORMAT, Metadata

OPENVINO = pytest.param(
    'openvino', marks=[pytest.mark.openvino, pytest.mark.filterwarnings('ignore')]
)
RUNTIMES = ['onnxruntime', OPENVINO]


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_boxes_are_in_pixels_of_the_picture(picture, runtime, tmp_path):
    path = write_onnx(tmp_path / 'a.onnx', CORNERS, DETECTOR.to_text())
    model = ExportedModel(path, runtime)
    found = model.predict(picture)
    np.testing.assert_allclose(found.boxes, [[0, 0, 60, 40]])
    np.testing.assert_allclose(found.scores, [picture[..., 2].mean()], rtol=0.01)
    assert found.labels.tolist() == [1]
    assert found.labels.dtype == np.int64
    assert model.classes == ('cat', 'dog')
    assert model.name == 'corners'
    masks = found.full_masks()
    assert masks.shape == (1, 40, 60)
    assert masks[0, 20, 15]
    assert not masks[0, 20, 45]
    assert len(found.above(256).boxes) == 0
    assert found.above(256).full_masks().shape == (0, 40, 60)


@pytest.mark.parametrize(
    ('picture_size', 'model_size'),
    [((40, 60), (80, 120)), ((60, 40), (120, 80)), ((10, 60), (20, 120)), ((33, 47), (80, 114))],
)
def test_pictures_are_resized_as_mmdet_does(picture_size, model_size, tmp_path):
    from mmdet.datasets.transforms import Resize

    model = ExportedModel(write_onnx(tmp_path / 'a.onnx', CORNERS, DETECTOR.to_text()))
    picture = np.random.default_rng(0).integers(0, 256, (*picture_size, 3), dtype=np.uint8)
    pixels, *size = model.prepare(picture)
    theirs = Resize(scale=DETECTOR.scale, keep_ratio=True)(dict(img=picture))
    assert tuple(size) == theirs['img_shape'] == model_size
    np.testing.assert_array_equal(pixels[0].transpose(1, 2, 0), theirs['img'])


def test_what_a_fixed_shape_pads_with_is_the_mean(picture, tmp_path):
    path = write_onnx(tmp_path / 'a.onnx', CORNERS, DETECTOR.to_text(), sides=(32, 64))
    model = ExportedModel(path)
    pixels, height, width = model.prepare(picture)
    assert pixels.shape == (1, 3, 32, 64)
    assert (height, width) == (32, 48)
    assert (pixels[0, :, :, 48:] == np.array(DETECTOR.mean)[:, None, None]).all()
    np.testing.assert_allclose(model.predict(picture).boxes, [[0, 0, 60, 40]])


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_label_maps_have_the_size_of_the_picture(picture, runtime, tmp_path):
    path = write_onnx(tmp_path / 'a.onnx', BRIGHTEST, SEGMENTOR.to_text())
    labels = ExportedModel(path, runtime).predict(picture)
    np.testing.assert_array_equal(labels, picture.argmax(axis=2))


def test_label_maps_are_decided_after_resizing_as_in_mmseg(picture, tmp_path):
    from mmseg.models.utils import resize

    metadata = Metadata(**{**vars(SEGMENTOR), 'scale': (90, 60)})
    model = ExportedModel(write_onnx(tmp_path / 'a.onnx', BRIGHTEST, metadata.to_text()))
    logits = torch.from_numpy(model.run(model.prepare(picture)[0])['logits'])
    for size in ((60, 90), (40, 60)):
        logits = resize(logits, size=size, mode='bilinear', align_corners=False)
    np.testing.assert_array_equal(model.predict(picture), logits[0].argmax(dim=0))


def test_masks_are_pasted_as_mmdet_does():
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    rng = np.random.default_rng(0)
    masks = rng.random((40, 28, 28), dtype=np.float32)
    starts, sides = rng.uniform(-5, 60, (40, 2)), rng.uniform(1, 40, (40, 2))
    boxes = np.concatenate([starts, starts + sides], axis=1).astype(np.float32)
    ours = paste(masks, boxes, 70, 80)
    for mask, box, pasted in zip(masks, boxes, ours, strict=True):
        theirs, _ = _do_paste_mask(
            torch.from_numpy(mask)[None, None], torch.from_numpy(box)[None], 70, 80, False
        )
        sure = (theirs[0] - 0.5).abs().numpy() > 1e-4  # else rounding decides
        np.testing.assert_array_equal(pasted[sure], theirs[0].numpy()[sure] >= 0.5)


def test_metadata_comes_back_as_it_was_written():
    assert Metadata.from_text(DETECTOR.to_text()) == DETECTOR
    assert json.loads(DETECTOR.to_text()['classes']) == ['cat', 'dog']


@pytest.mark.parametrize(
    ('change', 'line'),
    [
        ({}, 'has no metadata of ours'),
        ({'rmt_format': '99'}, f'format 99, this reads {FORMAT}'),
        ({'rmt_format': FORMAT}, 'its metadata lacks task'),
        ({**DETECTOR.to_text(), 'task': 'singing'}, "its task is 'singing'"),
    ],
    ids=['none', 'newer', 'lacking', 'task'],
)
def test_a_file_of_others_is_refused(change, line, tmp_path):
    path = write_onnx(tmp_path / 'a.onnx', CORNERS, change)
    with pytest.raises(UserError, match=line):
        ExportedModel(path)


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_a_file_that_is_not_onnx_is_refused(runtime, tmp_path):
    path = tmp_path / 'a.onnx'
    path.write_text('not a graph')
    with pytest.raises(UserError, match=f'a.onnx: {runtime} cannot read it'):
        ExportedModel(path, runtime)


def test_a_missing_runtime_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__('sys').modules, 'onnxruntime', None)
    path = write_onnx(tmp_path / 'a.onnx', CORNERS, DETECTOR.to_text())
    with pytest.raises(UserError, match=r'onnxruntime is not installed: pip install .*\[export\]'):
        ExportedModel(path)


@pytest.mark.parametrize(
    'picture', [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_picture_is_refused(picture, tmp_path):
    model = ExportedModel(write_onnx(tmp_path / 'a.onnx', CORNERS, DETECTOR.to_text()))
    with pytest.raises(ValueError, match='a picture is'):
        model.predict(picture)
