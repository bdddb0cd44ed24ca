"""Heads whose outputs are the data set's classes must have as many; others are left alone."""

from pathlib import Path

import pytest
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import init_default_scope
from own_data import OwnData
from support import checks
from support.checks.heads import check_heads

CLASSES = 'train_dataloader.dataset.metainfo.classes'


def test_heads_with_another_number_of_classes(own_coco: OwnData) -> None:
    line = own_coco.refusal(f"{CLASSES}=['person','car']")
    assert 'num_classes=80' in line
    assert 'has 2 classes' in line


def test_two_classes_everywhere_pass(own_coco: OwnData) -> None:
    heads = [f'model.roi_head.{head}.num_classes=2' for head in ('bbox_head', 'mask_head')]
    splits = [
        f"{split}_dataloader.dataset.metainfo.classes=['person','car']"
        for split in ('train', 'val', 'test')
    ]
    own_coco.check(*heads, *splits, splits=('train', 'val', 'test'))


def test_segmentation_heads_with_another_number_of_classes(own_ade: OwnData) -> None:
    line = own_ade.refusal('model.decode_head.num_classes=19')
    assert 'decode_head.num_classes=19, but' in line
    assert '150 classes' in line


def test_classes_that_are_one_string(own_coco: OwnData) -> None:
    assert "write ['person']" in own_coco.refusal(f'{CLASSES}=person')


def test_classes_in_a_file_pass(own_coco: OwnData) -> None:
    names = own_coco.root / 'names.txt'
    names.write_text('person\ncar\n')
    heads = [f'model.roi_head.{head}.num_classes=2' for head in ('bbox_head', 'mask_head')]
    own_coco.check(f'{CLASSES}={names}', *heads, splits=('train',))


def test_class_named_twice(own_coco: OwnData) -> None:
    line = own_coco.refusal(f"{CLASSES}=['person','car','person']")
    assert line == f"{CLASSES}: names 'person' twice; name each class once"


def refused(model: dict, scope: str, classes: int = 3) -> bool:
    init_default_scope(scope)
    try:
        check_heads(Config(dict(model=model)), 'data', [str(i) for i in range(classes)])
    except checks.UserError:
        return True
    return False


@pytest.mark.parametrize(
    ('model', 'refuses'),
    [
        (dict(roi_head=dict(bbox_head=dict(num_classes=80))), True),
        (dict(roi_head=dict(bbox_head=[dict(num_classes=3), dict(num_classes=80)])), True),
        (dict(detector=dict(bbox_head=dict(num_classes=80))), True),
        (dict(roi_head=dict(mask_head=dict(num_classes=80))), True),
        (dict(roi_head=dict(mask_head=dict(num_classes=1, class_agnostic=True))), False),
        (dict(rpn_head=dict(num_classes=1)), False),
        (dict(rpn_head=dict(stages=[dict(bbox_head=dict(num_classes=1))])), False),
        (dict(roi_head=dict(semantic_head=dict(num_classes=183))), False),
        (dict(backbone=dict(num_classes=1000)), False),
        (dict(roi_head=dict(attribute_head=dict(num_classes=7))), False),
        (dict(language_model=dict(), bbox_head=dict(num_classes=256)), False),
        (dict(detector=dict(language_model={}, bbox_head=dict(num_classes=256))), False),
        (dict(bbox_head=dict(type='RetinaHead')), False),
        (dict(panoptic_head=dict(num_things_classes=80, num_stuff_classes=0)), True),
        (dict(panoptic_fusion_head=dict(num_things_classes=80, num_stuff_classes=0)), True),
        (dict(panoptic_head=dict(num_things_classes=3, num_stuff_classes=5)), False),
    ],
)
def test_heads_of_detectors(model: dict, refuses: bool) -> None:
    assert refused(model, 'mmdet') == refuses


@pytest.mark.parametrize(
    ('model', 'refuses'),
    [
        (dict(decode_head=dict(type='FCNHead', num_classes=19)), True),
        (dict(decode_head=[dict(type='FCNHead', num_classes=19)]), True),
        (dict(auxiliary_head=dict(type='FCNHead', num_classes=19)), True),
        (dict(auxiliary_head=[dict(type='FCNHead', num_classes=19)]), True),
        (dict(auxiliary_head=[dict(type='STDCHead', num_classes=2)]), False),
        (dict(decode_head=dict(type='FCNHead', num_classes=3, out_channels=1)), False),
    ],
)
def test_heads_of_segmentors(model: dict, refuses: bool) -> None:
    assert refused(model, 'mmseg') == refuses


def test_of_mask2former_the_key_is_named_that_changes_every_place() -> None:
    cfg = Config.fromfile(ROOT / 'det_configs/mask2former_rmt_t_50e_coco.py')
    init_default_scope('mmdet')
    line = r'num_things_classes=80, .*must agree: num_classes=2$'
    with pytest.raises(checks.UserError, match=line):
        check_heads(cfg, 'data', ['cup', 'jug'])


@pytest.mark.parametrize(('number', 'refuses'), [(80, False), (133, True)])
def test_heads_of_panoptic_detectors_tell_things_apart(number: int, refuses: bool) -> None:
    init_default_scope('mmdet')
    leaf = checks.Leaf('data', dict(type='CocoPanopticDataset'))
    assert len(leaf.classes) == 133
    model = dict(roi_head=dict(bbox_head=dict(num_classes=number)))
    assert refused(model, 'mmdet', len(leaf.head_classes)) == refuses


@pytest.mark.slow
@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_every_config_of_the_packages_passes(scope: str) -> None:
    """Their heads are right by definition."""
    import importlib

    root = Path(importlib.import_module(scope).__file__).parent / '.mim/configs'
    wrong = []
    for path in sorted(root.glob('*/*.py')):
        if path.parent.name == '_base_':
            continue
        try:
            cfg = Config.fromfile(path)
        except (ImportError, FileNotFoundError):
            continue  # needs what is not installed
        init_default_scope(scope)
        loader = cfg.get('train_dataloader')
        if cfg.get('model') and loader and 'dataset' in loader:
            for key, dataset in checks.leaves(loader.dataset, 'data'):
                leaf = checks.Leaf(key, dataset)
                try:
                    check_heads(cfg, path.name, leaf.head_classes)
                except checks.UserError as error:
                    wrong.append(f'{path.name}: {error}')
    assert wrong == []
