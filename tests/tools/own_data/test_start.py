"""What of a weights file a new training takes."""

from pathlib import Path

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from released_files import imagenet_file, numbered
from support.own_data.recipe import BASES, MAP_HEADS
from support.own_data.start import NECK, SEGMENTOR, Weights, plan, widths

from backbone.rmt import RMT
from backbone.weights.checkpoint import CheckpointError

CLASSES = ['cat', 'dog']


@pytest.fixture(scope='module')
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as `make demo` leaves it, with narrow heads and five classes."""
    cfg = Config.fromfile(ROOT / 'det_configs/shapes/mask_rcnn_rmt_t_fpn_shapes.py')
    init_default_scope('mmdet')
    path = tmp_path_factory.mktemp('demo') / 'iter_330.pth'
    meta = dict(iter=330, epoch=0, dataset_meta=dict(classes=('a', 'b', 'c', 'd', 'e')))
    torch.save(dict(meta=meta, state_dict=numbered(MODELS.build(cfg.model))), path)
    return path


def test_a_detector_of_other_classes_gives_all_but_its_class_layers(demo: Path) -> None:
    weights = Weights.read(str(demo))
    assert weights.head == 'mask_rcnn'
    assert not weights.full_width
    assert not weights.schooled
    how, start = plan(weights, 'mask_rcnn', CLASSES)
    assert (how, start.key, start.own_classes) == ('detector', 'load_from', True)
    assert '5 classes apart start anew' in start.why


def test_a_detector_of_the_same_classes_is_trained_on(demo: Path) -> None:
    how, start = plan(Weights.read(str(demo)), 'mask_rcnn', list('abcde'))
    assert (how, start.key, start.own_classes) == ('again', 'load_from', False)
    how, start = plan(Weights.read(str(demo)), 'mask_rcnn', list('abced'))  # another order
    assert start.own_classes


def test_a_detector_with_another_head_gives_its_backbone(demo: Path) -> None:
    how, start = plan(Weights.read(str(demo)), 'retinanet', CLASSES)
    assert (how, start.key, start.own_classes) == ('backbone', 'pretrained', False)
    assert 'the backbone alone' in start.why


def test_a_detector_whose_head_new_configs_have_not_gives_its_backbone(tmp_path: Path) -> None:
    backbone = RMT('tiny', out_indices=(1, 2, 3)).state_dict()
    state_dict = {f'backbone.{name}': tensor for name, tensor in backbone.items()}
    state_dict['bbox_head.cls_branches.0.weight'] = torch.zeros(2, 4)
    state_dict['dn_query_generator.label_embedding.weight'] = torch.zeros(2, 4)
    file = str(tmp_path / 'dino.pth')
    torch.save(dict(meta={}, state_dict=state_dict), file)
    weights = Weights.read(file)
    assert weights.head == ''
    how, start = plan(weights, 'mask_rcnn', CLASSES)
    assert (how, start.key) == ('backbone', 'pretrained')
    assert start.why == 'RMT-T DINO, 2 classes: of a DINO, the backbone alone'
    RMT('tiny', init_cfg=dict(type='Pretrained', checkpoint=file)).init_weights()


def test_an_imagenet_file_is_for_the_backbone(tmp_path: Path) -> None:
    torch.save(imagenet_file(RMT('tiny')), tmp_path / 'RMT_T3.pth')
    weights = Weights.read(str(tmp_path / 'RMT_T3.pth'))
    assert weights.head == ''
    assert weights.schooled
    assert plan(weights, 'fpn', CLASSES)[1].key == 'pretrained'


def test_other_weights_are_refused(tmp_path: Path) -> None:
    torch.save({'fc.weight': torch.ones(2, 2)}, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='--start takes RMT of the sizes T, S, B, L'):
        Weights.read(str(tmp_path / 'other.pth'))
    with pytest.raises(CheckpointError, match='absent'):
        Weights.read(str(tmp_path / 'absent.pth'))


@pytest.mark.parametrize(('head', 'base'), BASES.items())
def test_both_widths_of_every_head_are_told_apart(head: str, base: str) -> None:
    """By what a model of each base has."""
    folder = 'seg_configs' if head in MAP_HEADS else 'det_configs'
    assert sorted(widths(head).values()) == [False, True]
    for width, full in widths(head).items():
        cfg = Config.fromfile(ROOT / folder / '_base_' / f'{base if full else f"{head}_narrow"}.py')
        init_default_scope(cfg.default_scope)
        cfg.model.backbone = dict(type='RMT', out_indices=(1, 2, 3) if base[0] == 'r' else range(4))
        stages = [64, 128, 256, 512]
        if 'neck' in cfg.model:
            cfg.model.neck.in_channels = stages[1:] if base[0] == 'r' else stages
        else:
            cfg.model.decode_head.in_channels = stages
            cfg.model.auxiliary_head.in_channels = stages[2]
        with torch.device('meta'):
            shapes = {n: t.shape for n, t in MODELS.build(cfg.model).state_dict().items()}
        found = shapes[NECK][0] if NECK in shapes else shapes[SEGMENTOR][1]
        assert found == width


def test_nothing_is_a_start_too() -> None:
    assert plan(None, 'retinanet', CLASSES)[0] == 'nothing'
