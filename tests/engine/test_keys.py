"""The two keys that a config can not carry out alone: data_root and pretrained."""

from pathlib import Path

import pytest
import torch
from config_files import RECIPES
from conftest import DET_CONFIG, ROOT
from mmengine.config import Config
from mmengine.registry import init_default_scope

from backbone import RMT
from backbone.engine import PortableRunner, RMTRunner, apply_keys


def strings(node):
    """Every string inside a config value."""
    if isinstance(node, dict):
        node = node.values()
    if isinstance(node, str):
        yield node
    elif not isinstance(node, int | float | None):
        for value in node:
            yield from strings(value)


def data_strings(cfg):
    return [
        text
        for split in ('train', 'val', 'test')
        for part in ('dataloader', 'evaluator')
        for text in strings(cfg.get(f'{split}_{part}'))
    ]


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_one_key_moves_every_path(path):
    cfg = Config.fromfile(path)
    assert any(text.startswith('data/') for text in data_strings(cfg))
    cfg.data_root = '/big/disk'
    apply_keys(cfg)
    assert not any(text.startswith('data/') for text in data_strings(cfg))
    assert cfg.train_dataloader.dataset.data_root.rstrip('/') == '/big/disk'
    if path.parent.name == 'det_configs':
        assert cfg.val_evaluator.ann_file == '/big/disk/annotations/instances_val2017.json'


def test_a_path_that_is_set_already_stays():
    cfg = Config.fromfile(ROOT / DET_CONFIG)
    cfg.data_root = '/new'
    cfg.val_evaluator.ann_file = '/mine/val.json'
    cfg.val_dataloader.dataset.data_root = 'data/coco_small/'
    apply_keys(cfg)
    assert cfg.val_evaluator.ann_file == '/mine/val.json'
    assert cfg.val_dataloader.dataset.data_root == 'data/coco_small/'
    assert cfg.train_dataloader.dataset.data_root == '/new/'


SMALL = dict(
    runner_type='RMTRunner',
    data_root='data/coco',
    model=dict(backbone=dict(type='RMT', arch='tiny')),
    train_dataloader=dict(dataset=dict(data_root='data/coco/', ann_file='train.json')),
    val_dataloader=dict(dataset=dict(datasets=[dict(data_root='data/coco'), dict(data_root='x')])),
    val_evaluator=dict(ann_file='data/coco/val.json'),
)


def paths(cfg):
    """The moved paths of SMALL."""
    datasets = cfg.val_dataloader.dataset.datasets
    assert datasets[1].data_root == 'x'
    assert cfg.train_dataloader.dataset.ann_file == 'train.json'
    return [
        cfg.train_dataloader.dataset.data_root,
        datasets[0].data_root,
        cfg.val_evaluator.ann_file,
    ]


@pytest.mark.parametrize(
    ('root', 'expected'),
    [
        ('/new', ['/new/', '/new', '/new/val.json']),
        ('/new/', ['/new/', '/new', '/new/val.json']),
        ('rel/new', ['rel/new/', 'rel/new', 'rel/new/val.json']),
        ('/', ['/', '/', '/val.json']),
        ('data/coco/mini', ['data/coco/mini/', 'data/coco/mini', 'data/coco/mini/val.json']),
        ('data/coco/mini/', ['data/coco/mini/', 'data/coco/mini', 'data/coco/mini/val.json']),
        ('data/coco_2', ['data/coco_2/', 'data/coco_2', 'data/coco_2/val.json']),
        ('data', ['data/', 'data', 'data/val.json']),
        ('data/coco', ['data/coco/', 'data/coco', 'data/coco/val.json']),
        ('~/new', ['/home/me/new/', '/home/me/new', '/home/me/new/val.json']),
        (2024, ['2024/', '2024', '2024/val.json']),
        (Path('/new'), ['/new/', '/new', '/new/val.json']),
    ],
)
def test_moving_twice_is_moving_once(root, expected, monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    cfg = Config(SMALL)
    cfg.data_root = root
    assert paths(apply_keys(cfg)) == expected
    once = cfg.to_dict()
    assert apply_keys(cfg).to_dict() == once
    # read again from what a run dumps, and without the record, as an earlier release dumped it
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == once
    cfg.pop('applied_keys', None)
    if root != 'data':  # whose paths may have been anything
        assert paths(apply_keys(cfg)) == expected


@pytest.mark.parametrize('first', ['/old', 'data/coco/mini', 'data', 'data/coco'])
@pytest.mark.parametrize('second', ['/new', '/old/deeper', 'data/coco', 'data/coco/mini/mini'])
def test_a_dumped_config_moves_on_to_another_root(first, second):
    cfg = Config(SMALL)
    cfg.data_root = first
    dumped = Config.fromstring(apply_keys(cfg).pretty_text, '.py')
    dumped.data_root = second
    assert paths(apply_keys(dumped)) == [f'{second}/', second, f'{second}/val.json']
    assert paths(apply_keys(dumped)) == [f'{second}/', second, f'{second}/val.json']


def test_a_config_dumped_by_an_earlier_release_moves_too():
    dumped = Config(SMALL).to_dict()
    moved = eval(repr(dumped).replace('data/coco', '/old'))
    cfg = Config(moved)
    assert paths(cfg) == ['/old/', '/old', '/old/val.json']
    cfg.merge_from_dict(dict(data_root='/new'))
    assert paths(cfg) == ['/new/', '/new', '/new/val.json']


@pytest.mark.parametrize('key', ['data_root', 'pretrained', 'load_from'])
def test_what_is_no_path_is_refused(key):
    cfg = Config(SMALL)
    with pytest.raises(ValueError, match=rf"^{key}=\['/a', 'b'\]: must be one path"):
        cfg.merge_from_dict({key: ['/a', 'b']})


MODELS_WITH_RMT = {
    'detector': (dict(backbone=dict(type='RMT')), ['backbone']),
    'semi': (
        dict(type='SemiBase', detector=dict(backbone=dict(type='mmdet.RMT'))),
        ['detector.backbone'],
    ),
    'tta': (dict(type='TTA', module=dict(backbone=dict(type='RMT'))), ['module.backbone']),
    'class': (dict(parts=[dict(type=RMT), dict(type='FPN')]), ['parts.0']),
    'two': (dict(one=dict(type='RMT'), two=dict(type='RMT')), ['one', 'two']),
    'other': (dict(backbone=dict(type='ResNet')), ['backbone']),
    'none given': (dict(backbone=dict(type='RMT', init_cfg=None)), ['backbone']),
}


@pytest.mark.parametrize('model', MODELS_WITH_RMT)
def test_pretrained_goes_to_every_backbone_wherever_it_is(model):
    model, places = MODELS_WITH_RMT[model]
    cfg = Config(dict(runner_type='RMTRunner', model=model))

    def found():
        nodes = []
        for place in places:
            node = cfg.model
            for name in place.split('.'):
                node = node[int(name)] if name.isdigit() else node[name]
            nodes.append((node.get('init_cfg') or {}).get('checkpoint'))
        return nodes

    for file in ('a.pth', 'b.pth', None):
        cfg.pretrained = file
        apply_keys(cfg)
        assert found() == [file] * len(places)
        assert apply_keys(cfg).pretrained == file


def test_a_model_without_a_backbone_has_no_place_for_pretrained():
    with pytest.raises(ValueError, match=r'^pretrained=a\.pth: the model has no backbone'):
        apply_keys(Config(dict(model=dict(type='Toy'), pretrained='a.pth')))
    assert apply_keys(Config(dict(model=dict(type='Toy')))).model == dict(type='Toy')


def test_the_name_of_averaged_weights_and_an_init_of_ones_own_stay():
    init = dict(type='Pretrained', checkpoint='x', key='model_ema')
    cfg = Config(dict(model=dict(backbone=dict(type='RMT', init_cfg=init))))
    assert apply_keys(cfg).model.backbone.init_cfg == init
    cfg.pretrained = 'a.pth'
    assert apply_keys(cfg).model.backbone.init_cfg == {**init, 'checkpoint': 'a.pth'}


def test_without_the_keys_nothing_changes():
    cfg = Config.fromfile(ROOT / DET_CONFIG)
    before = cfg.to_dict()
    assert apply_keys(cfg).to_dict() == before


@pytest.fixture
def runner(tmp_path, tiny_coco, monkeypatch):
    """A function: keys -> runner of DET_CONFIG; a config is left as it was given."""
    monkeypatch.setattr(RMTRunner, 'dump_config', lambda *_: None)

    def make(**keys):
        cfg = Config.fromfile(ROOT / DET_CONFIG)
        init_default_scope('mmdet')
        cfg.update(work_dir=str(tmp_path), data_root=str(tiny_coco), **keys)
        before = cfg.to_dict()
        made = RMTRunner.from_cfg(cfg)
        assert cfg.to_dict() == before
        return made

    return make


def test_pretrained_fills_the_backbone(runner, tmp_path):
    source = runner().model.backbone
    with torch.no_grad():
        source.patch_embed.proj[0].weight.fill_(0.25)
    file = tmp_path / 'rmt.pth'
    torch.save({'model': source.state_dict()}, file)
    made = runner(pretrained=str(file))
    made._init_model_weights()
    for name, tensor in made.model.backbone.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


@pytest.mark.parametrize(
    ('keys', 'says'),
    [
        ({}, True),
        ({'pretrained': 'a.pth'}, False),
        ({'load_from': 'a.pth'}, False),
        ({'resume': True}, False),
    ],
)
def test_training_from_scratch_is_said(runner, monkeypatch, keys, says):
    monkeypatch.setattr(PortableRunner, 'train', lambda self: None)
    made, lines = runner(**keys), []
    monkeypatch.setattr(made.logger, 'warning', lines.append)
    made.train()
    assert [('from scratch' in line and 'pretrained=FILE' in line) for line in lines] == [
        True
    ] * says


# --- num_classes ---------------------------------------------------------------------------------

MASK2FORMER = 'det_configs/mask2former_rmt_t_50e_coco.py'


def class_counts(model: dict) -> list[int]:
    """What every place of a Mask2Former says of the number of classes."""
    parts = [model[name] for name in model if name.endswith('_head')]
    counts = [part.get('num_things_classes', part.get('num_classes')) for part in parts]
    return counts + [len(p.loss_cls.class_weight) - 1 for p in parts if 'loss_cls' in p]


@pytest.mark.parametrize(
    ('path', 'places', 'number'),
    [(MASK2FORMER, 3, 80), ('seg_configs/mask2former_rmt_t_160k_ade20k.py', 2, 150)],
)
def test_one_key_tells_mask2former_its_classes(path, places, number):
    cfg = apply_keys(Config.fromfile(ROOT / path))
    assert class_counts(cfg.model) == [number] * places
    cfg.num_classes = 3
    for _ in range(2):
        assert class_counts(apply_keys(cfg).model) == [3] * places
    assert (cfg.model.get('panoptic_head') or cfg.model.decode_head).loss_cls.class_weight[
        -1
    ] == 0.1
    cfg.num_classes = 5
    assert class_counts(apply_keys(cfg).model) == [5] * places


def test_classes_of_mask2former_that_somebody_sets_himself_stay():
    cfg = Config.fromfile(ROOT / MASK2FORMER)
    cfg.model.panoptic_head.num_things_classes = 3
    assert apply_keys(cfg).model.panoptic_head.num_things_classes == 3
    cfg = Config(dict(model=dict(cfg.model), num_classes=80))  # a variable of mmdet's own config
    assert apply_keys(cfg).model.panoptic_head.num_things_classes == 3
