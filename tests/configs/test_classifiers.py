"""The configs of classifiers: what they build, and their keys."""

from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from released_files import MINI
from torch.nn.modules.batchnorm import _BatchNorm

from backbone.engine import apply_keys
from backbone.rmt import VARIANTS

CONFIGS = sorted((ROOT / 'cls_configs').glob('*.py'))
VARIANT = {variant.letter.lower(): variant for variant in VARIANTS.values()}
PARAMETERS = {'t': 14_334_216, 's': 26_967_240, 'b': 54_154_896, 'l': 95_464_864}
"""Published, with the head for 1000 classes."""
by_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)


def build_on_meta(cfg: Config) -> torch.nn.Module:
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('letter', PARAMETERS)
def test_parameters_are_the_published_ones(letter):
    model = build_on_meta(Config.fromfile(ROOT / f'cls_configs/rmt_{letter}_300e_in1k.py'))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[letter]


@by_config
def test_config_has_the_classifier_of_its_name(path):
    cfg = Config.fromfile(path)
    model = build_on_meta(cfg)
    variant = VARIANT[path.stem.split('_')[1]]
    assert model.backbone.variant == variant
    assert model.backbone.out_indices == (3,)
    assert len(model.backbone.extra_norms) == 0
    blocks = [block for stage in model.backbone.layers for block in stage.blocks]
    assert blocks[-1].drop_path.rate == pytest.approx(variant.drop_path)
    norms = {type(m) for m in model.modules() if isinstance(m, _BatchNorm)}
    assert norms == {torch.nn.SyncBatchNorm}
    assert cfg.model.data_preprocessor.num_classes == cfg.model.head.num_classes
    assert cfg.default_hooks.checkpoint.save_best == 'accuracy/top1'


@by_config
def test_one_key_moves_every_path(path):
    cfg = Config.fromfile(path)
    loaders = [f'{split}_dataloader' for split in ('train', 'val', 'test')]
    assert {cfg[loader].dataset.data_root.rstrip('/') for loader in loaders} == {cfg.data_root}
    cfg.data_root = '/big/disk'
    apply_keys(cfg)
    assert {cfg[loader].dataset.data_root.rstrip('/') for loader in loaders} == {'/big/disk'}


def test_one_key_tells_the_number_of_classes():
    cfg = Config.fromfile(ROOT / 'cls_configs/rmt_t_folder.py')
    numbers = lambda: (cfg.model.head.num_classes, cfg.model.data_preprocessor.num_classes)  # noqa: E731
    assert numbers() == (2, 2)
    cfg.merge_from_dict(dict(num_classes=7))
    assert numbers() == (7, 7)
    again = Config.fromstring(cfg.pretty_text, '.py')
    assert again.model.head.num_classes == 7
    # what somebody sets himself stays
    cfg.merge_from_dict({'model.head.num_classes': 5})
    assert numbers() == (5, 7)
    with pytest.raises(ValueError, match='num_classes=many: must be a whole number'):
        cfg.merge_from_dict(dict(num_classes='many'))


def test_every_parameter_of_a_classifier_learns(monkeypatch):
    from mmpretrain.structures import DataSample  # a config has imported what that needs

    monkeypatch.setitem(VARIANTS, 'tiny', replace(VARIANTS['tiny'], **MINI))
    cfg = Config.fromfile(ROOT / 'cls_configs/rmt_t_300e_in1k.py')
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.update(norm_cfg=dict(type='BN'), drop_path_rate=0.0)
    cfg.model.neck.norm_cfg = dict(type='BN')
    model = MODELS.build(cfg.model)
    model.init_weights()
    for layer in (model.head.fc, model.neck.proj):
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()
    samples = [DataSample().set_gt_label(label) for label in range(2)]
    data = dict(inputs=torch.randint(0, 256, (2, 3, 64, 32)), data_samples=samples)
    losses = model(**model.data_preprocessor(data, training=True), mode='loss')
    losses['loss'].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
