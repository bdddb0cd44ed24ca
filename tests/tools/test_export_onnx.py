"""tools/export_onnx.py and tools/test_onnx.py: from a config and a checkpoint to metrics."""

import hashlib
import json
import pickle
import sys

import numpy as np
import onnx
import pytest
import torch
from conftest import call_tool
from support.config import read_config
from support.exported import ExportedModel
from support.exporting import comparing, graph
from support.prediction.model import build, predictor
from tiny_models import tiny_config, tiny_model


@pytest.fixture(scope='module')
def made(tmp_path_factory, tiny_det, tiny_seg):
    """By family: config, checkpoint, options, and where the file is to go."""
    folder, made = tmp_path_factory.mktemp('made'), {}
    for family, number, options in (('mask_rcnn', 80, tiny_det), ('fpn', 150, tiny_seg)):
        cfg = tiny_config(family, number)
        config, weights = folder / f'{family}.py', folder / f'{family}.pth'
        config.write_text(cfg.pretty_text)
        torch.save(dict(meta={}, state_dict=tiny_model(cfg).state_dict()), weights)
        made[family] = config, weights, options, folder / f'{family}.onnx'
    return made


@pytest.fixture(scope='module')
def exported(made):
    """The same, with files for any size."""
    for config, weights, options, file in made.values():
        assert call_tool('export_onnx', config, weights, file, '--cfg-options', *options) == 0
    return made


def evaluate(tool, config, what, options, folder, *more):
    """Metrics and predictions of tools/test.py or tools/test_onnx.py."""
    out, work = folder / f'{tool}.pkl', folder / tool
    arguments = ('--out', out, '--work-dir', work, *more, '--cfg-options', *options)
    assert call_tool(tool, config, what, *arguments) == 0
    return json.loads(next(work.glob('2*/2*.json')).read_text()), pickle.loads(out.read_bytes())


@pytest.mark.parametrize('size', [(96, 128), (130, 70), (37, 201)])
@pytest.mark.parametrize(
    'runtime', ['onnxruntime', pytest.param('openvino', marks=pytest.mark.openvino)]
)
def test_one_file_serves_every_size(exported, runtime, size):
    config, weights, options, file = exported['mask_rcnn']
    cfg = read_config(str(config), dict(option.split('=', 1) for option in options))
    model, _ = build(cfg, str(weights), 'cpu')
    patches = np.random.default_rng(0).integers(0, 256, (30, 30, 3))
    picture = np.kron(patches, np.ones((8, 8, 1)))[: size[0], : size[1]].astype(np.uint8)
    exported_model = ExportedModel(file, runtime, threads=1)
    found = comparing.compare(predictor(model, cfg), exported_model, [picture])
    found.check()
    assert found.objects


def test_a_detector_is_evaluated_as_in_pytorch(exported, tmp_path):
    config, weights, options, file = exported['mask_rcnn']
    ours, found = evaluate('test_onnx', config, file, options, tmp_path)
    theirs, expected = evaluate('test', config, weights, options, tmp_path)
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= set(ours)
    for key, value in theirs.items():
        if 'mAP' in key:
            assert ours[key] == pytest.approx(value, abs=1e-3)
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        one, other = one['pred_instances'], other['pred_instances']
        torch.testing.assert_close(one['bboxes'], other['bboxes'], atol=0.05, rtol=0)
        torch.testing.assert_close(one['labels'], other['labels'])
        assert [m['size'] for m in one['masks']] == [m['size'] for m in other['masks']]


@pytest.mark.parametrize(
    'runtime', ['onnxruntime', pytest.param('openvino', marks=pytest.mark.openvino)]
)
def test_a_segmentor_is_evaluated_as_in_pytorch(exported, runtime, tmp_path):
    config, weights, options, file = exported['fpn']
    ours, found = evaluate('test_onnx', config, file, options, tmp_path, '--runtime', runtime)
    theirs, expected = evaluate('test', config, weights, options, tmp_path)
    assert ours['mIoU'] == pytest.approx(theirs['mIoU'], abs=0.1)  # in per cent
    for one, other in zip(found, expected, strict=True):
        one, other = (each['pred_sem_seg']['data'] for each in (one, other))
        assert (one != other).double().mean() <= 1e-4


def test_the_file_says_what_it_is(exported):
    _, weights, _, file = exported['mask_rcnn']
    model = ExportedModel(file)
    assert (model.task, model.name, len(model.classes)) == ('detection', 'mask_rcnn', 80)
    assert model.classes[0] == 'person'
    assert model.palette[0] == (220, 20, 60)  # COCO's
    assert model.metadata.scale == (128, 96)
    provenance = model.metadata.provenance
    assert provenance['checkpoint'] == 'mask_rcnn.pth'
    assert provenance['checkpoint_sha256'] == hashlib.sha256(weights.read_bytes()).hexdigest()
    graph = onnx.load(file).graph
    assert [value.name for value in graph.input] == ['image']
    outputs = {v.name: v.type.tensor_type.elem_type for v in graph.output}
    kinds = onnx.TensorProto
    assert outputs == dict(
        boxes=kinds.FLOAT, scores=kinds.FLOAT, labels=kinds.INT64, masks=kinds.FLOAT
    )


def test_a_file_that_differs_is_not_kept(made, monkeypatch, tmp_path, capsys):
    config, weights, options, _ = made['fpn']
    original = graph.export

    def spoilt(what, shape):
        what.module.head.conv_seg.weight.data[0] += 1
        return original(what, shape)

    monkeypatch.setattr(graph, 'export', spoilt)
    file = tmp_path / 'a.onnx'
    arguments = ('--shape', 64, 64, '--cfg-options', *options)
    assert call_tool('export_onnx', config, weights, file, *arguments) == 2
    assert 'the file differs from the model in PyTorch: label maps' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('arguments', 'line'),
    [
        (['nowhere.py', '{weights}', '{out}'], 'nowhere.py: no such config'),
        (['cls_configs/rmt_t_folder.py', '{weights}', '{out}'], 'neither a detector nor a segm'),
        (['{config}', 'nowhere.pth', '{out}'], 'checkpoint nowhere.pth: no such file'),
        (['{config}', '{weights}', 'a.pth'], 'a.pth: give a file that ends in .onnx'),
        (['{config}', '{weights}', 'nowhere/\0/a.onnx'], 'OUT.onnx'),
        (['{config}', '{other}', '{out}'], 'fpn.pth'),
        (['{config}', '{weights}', '{out}', '--shape', '8', '8'], '--shape'),
        (['{config}', '{weights}', '{out}', '--images', 'no.jpg'], '--images no.jpg: no such file'),
    ],
    ids=['config', 'classifier', 'checkpoint', 'suffix', 'place', 'other', 'shape', 'images'],
)
def test_a_mistake_is_one_line(made, arguments, line, tmp_path, capsys):
    config, weights, options, _ = made['mask_rcnn']
    places = dict(config=config, weights=weights, other=made['fpn'][1], out=tmp_path / 'a.onnx')
    arguments = [word.replace('\0', 'x').format(**places) for word in arguments]
    if 'nowhere/x/a.onnx' in arguments:
        (tmp_path / 'file').touch()
        arguments[2] = str(tmp_path / 'file' / 'a.onnx')
    assert call_tool('export_onnx', *arguments, '--cfg-options', *options) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count('\n') == 1
    assert not list(tmp_path.glob('*.onnx'))


def test_a_part_that_cannot_be_exported_is_one_line(made, tmp_path, capsys):
    config, weights, options, _ = made['mask_rcnn']
    options = [*options, 'model.test_cfg.rcnn.nms.type=soft_nms']
    arguments = (config, weights, tmp_path / 'a.onnx', '--cfg-options', *options)
    assert call_tool('export_onnx', *arguments) == 2
    error = capsys.readouterr().err
    assert 'mask_rcnn.py cannot be exported: model.test_cfg.rcnn: nms is' in error


@pytest.mark.parametrize('package', ['onnx', 'onnxscript', 'onnxruntime'])
def test_a_missing_package_names_its_extra(made, package, monkeypatch, tmp_path, capsys):
    config, weights, _, _ = made['fpn']
    monkeypatch.setitem(sys.modules, package, None)
    assert call_tool('export_onnx', config, weights, tmp_path / 'a.onnx') == 2
    assert f'{package} is not installed: pip install rmt-downstream[export]' in (
        capsys.readouterr().err
    )


def test_a_file_of_another_kind_or_other_classes_is_not_evaluated(exported, capsys, tmp_path):
    config, _, options, _ = exported['mask_rcnn']
    segmentor = exported['fpn'][3]
    assert call_tool('test_onnx', config, segmentor, '--cfg-options', *options) == 2
    assert 'its task is segmentation, the config is of detection' in capsys.readouterr().err
    file = onnx.load(exported['mask_rcnn'][3])
    (classes,) = (p for p in file.metadata_props if p.key == 'classes')
    classes.value = json.dumps(['cup', 'jug'])
    onnx.save(file, tmp_path / 'a.onnx')
    work = ('--work-dir', tmp_path / 'work')
    arguments = (config, tmp_path / 'a.onnx', *work, '--cfg-options', *options)
    assert call_tool('test_onnx', *arguments) == 2
    assert "its 2 classes are cup, jug ..., the data set's 80 are" in capsys.readouterr().err
