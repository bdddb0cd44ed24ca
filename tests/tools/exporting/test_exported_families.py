"""What an exported file of every family finds is what mmdet and mmseg find."""

import numpy as np
import onnx
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from support.config import read_config
from support.exported import ExportedModel
from support.exporting import build, comparing, describing, graph
from support.prediction.model import predictor
from tiny_models import SEGMENTORS, tiny_config, tiny_model

RUNTIMES = ['onnxruntime', pytest.param('openvino', marks=pytest.mark.openvino)]
SHAPE = (96, 128)


@pytest.fixture(scope='module')
def picture():
    """Patches of colour, RGB: a random network tells their edges apart."""
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 256, (12, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def write(path, family, shape, part='model', backbone='RMT'):
    """A file of the family, its config, and the model."""
    cfg = tiny_config(family, backbone=backbone)
    model = tiny_model(cfg)
    what = build.exportable(model, part)
    file = graph.export(what, shape)
    metadata = describing.describe(cfg, model, what, 'none.pth')
    onnx.helper.set_model_props(file, metadata.to_text())
    onnx.save(file, path)
    return path, cfg, model


# Cascade's parts are those of Mask R-CNN, which test_export_onnx.py exports
@pytest.fixture(
    scope='module',
    params=[pytest.param('cascade', marks=pytest.mark.slow), 'retinanet', 'upernet'],
)
def of_one_size(request, tmp_path_factory):
    path = tmp_path_factory.mktemp('fixed') / 'a.onnx'
    return (*write(path, request.param, SHAPE), request.param)


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_a_file_finds_what_the_model_finds(of_one_size, runtime, picture):
    path, cfg, model, family = of_one_size
    exported = ExportedModel(path, runtime, threads=1)
    found = comparing.compare(predictor(model, cfg), exported, [picture])
    found.check()
    assert (
        (len(np.unique(exported.predict(picture))) > 1) if family in SEGMENTORS else found.objects
    )


def test_only_operators_of_onnx_are_used(of_one_size):
    file = onnx.load(of_one_size[0])
    assert {node.domain for node in file.graph.node} == {''}
    assert [(o.domain, o.version) for o in file.opset_import] == [('', graph.OPSET)]


def test_nothing_in_a_file_names_a_place_of_this_machine(of_one_size):
    assert str(build.__file__).rsplit('/', 4)[0].encode() not in of_one_size[0].read_bytes()


def test_the_backbone_alone(tmp_path, picture):
    path, _, model = write(tmp_path / 'a.onnx', 'fpn', SHAPE, 'backbone')
    exported = ExportedModel(path, threads=1)
    assert exported.run.outputs == ['stride_4', 'stride_8', 'stride_16', 'stride_32']
    comparing.compare_features(model, exported, [picture]).check()
    with pytest.raises(ValueError, match='backbone alone'):
        exported.predict(picture)


@pytest.mark.parametrize('backbone', ['RAVLT', 'MAViT'])
def test_the_backbones_beside_rmt(backbone, tmp_path, picture):
    path, _, model = write(tmp_path / 'a.onnx', 'fpn', SHAPE, 'backbone', backbone)
    comparing.compare_features(model, ExportedModel(path, threads=1), [picture]).check()


@pytest.mark.parametrize(('H', 'W'), [(12, 12), (7, 9), (6, 13), (3, 2)])
def test_pooling_by_products_is_adaptive_pooling(H, W):
    from support.exporting.parts import AdaptivePool

    x = torch.randn(2, 3, H, W)
    for size in (1, 2, 3, 6):
        expected = torch.nn.functional.adaptive_avg_pool2d(x, size)
        torch.testing.assert_close(AdaptivePool(size)(x), expected)


def unusual(family, **changes):
    """The family's tiny model with changes to its config, by dotted keys."""
    cfg = tiny_config(family)
    cfg.merge_from_dict({f'model.{key}'.replace('__', '.'): v for key, v in changes.items()})
    return tiny_model(cfg)


@pytest.mark.parametrize(
    ('family', 'changes', 'line'),
    [
        ('mask_rcnn', dict(test_cfg__rcnn__nms__type='soft_nms'), r'model.test_cfg.rcnn: nms is'),
        (
            'mask_rcnn',
            dict(roi_head__mask_roi_extractor__roi_layer__pool_mode='max'),
            'model.roi_head.mask_roi_extractor.roi_layer: aligned averages alone',
        ),
        ('mask_rcnn', dict(data_preprocessor__bgr_to_rgb=False), 'bgr_to_rgb must be True'),
        (
            'retinanet',
            dict(bbox_head__type='FreeAnchorRetinaHead'),
            'model.bbox_head is FreeAnchor',
        ),
        ('retinanet', dict(test_cfg__nms_pre=-1), 'test_cfg.nms_pre must be given'),
        ('fpn', dict(test_cfg__mode='slide'), 'model.test_cfg.mode is slide'),
    ],
    ids=['nms', 'pool', 'colours', 'dense', 'nms_pre', 'mode'],
)
def test_what_has_no_form_in_onnx_is_named(family, changes, line):
    model = unusual(family, **changes)
    with pytest.raises(build.NotExportable, match=line):
        build.exportable(model)


@pytest.mark.parametrize(
    ('path', 'line'),
    [
        ('det_configs/dino_rmt_t_4scale_12e_coco.py', 'model is DINO'),
        ('det_configs/mask2former_rmt_t_50e_coco.py', 'model is Mask2Former'),
        ('det_configs/rtmdet_rmt_s_100e_coco.py', 'model is RTMDet'),
        ('det_configs/atss_rmt_t_fpn_1x_coco.py', 'model is ATSS'),
        ('seg_configs/mask2former_rmt_t_160k_ade20k.py', 'model.decode_head is Mask2FormerHead'),
    ],
)
def test_a_head_that_is_not_exported_is_named_first(path, line):
    cfg = read_config(path, {})
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    with pytest.raises(build.NotExportable, match=f'{line}: this head is not supported by export'):
        build.exportable(model)


@pytest.mark.parametrize(
    ('family', 'where', 'line'),
    [
        ('fpn', 'backbone', 'model.backbone is Other; exported are: RMT, RAVLT, MAViT'),
        ('fpn', 'decode_head', 'model.decode_head is Other; exported are: FPNHead'),
        ('mask_rcnn', 'roi_head', 'model.roi_head is Other; exported are: StandardRoIHead'),
        ('mask_rcnn', 'roi_head.bbox_head', 'model.roi_head.bbox_head is Other'),
    ],
)
def test_a_part_of_another_class_is_named(family, where, line):
    """Also where it inherits from one that is exported: it may compute something else."""
    model = tiny_model(tiny_config(family))
    part = model.get_submodule(where)
    part.__class__ = type('Other', (type(part),), {})
    with pytest.raises(build.NotExportable, match=line):
        build.exportable(model)


def test_a_detector_of_another_kind_is_named():
    with pytest.raises(build.NotExportable, match='model is DINO: this head is not supported'):
        build.check_head(type('DINO', (torch.nn.Module,), {})())


def test_a_test_pipeline_that_the_file_cannot_tell_is_named():
    cfg, flip = tiny_config('mask_rcnn'), ConfigDict(type='RandomFlip', prob=1.0)
    cfg.test_dataloader.dataset.pipeline.insert(1, flip)
    with pytest.raises(build.NotExportable, match=r'its test pipeline has .*RandomFlip'):
        describing.resizing(cfg)
