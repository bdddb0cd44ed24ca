"""The two keys that a config can not carry out alone: data_root and pretrained."""

import pytest
import torch
from config_files import CONFIGS
from conftest import DET_CONFIG, ROOT, SEG_CONFIG
from mmengine.config import Config
from mmengine.registry import init_default_scope

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


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
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


@pytest.mark.parametrize('root', ['/new', '/new/', 'rel/new', '/'])
def test_moving_twice_is_moving_once(root):
    cfg = Config.fromfile(ROOT / SEG_CONFIG)
    cfg.data_root = root
    once = apply_keys(cfg).to_dict()
    assert apply_keys(cfg).to_dict() == once


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
