"""The rows of RMT's successors: RMT's recipes, but for the backbone and the images a GPU."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from config_files import CONFIGS, RECIPES
from conftest import ROOT
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch.nn.modules.batchnorm import _BatchNorm

TYPES = {'ravlt': 'RAVLT', 'mavit': 'MAViT'}
ARCHS = {'t': 'tiny', 's': 'small', 'b': 'base', 'l': 'large'}

# As released, by config with family and size for {}: rate, images a GPU. With them the GPUs that
# the rate belongs to, at 1e-4 (UperNet 6e-5) for 16 images: an inference, no file names them.
RELEASED = {
    'det_configs/mask_rcnn_{}_fpn_1x_coco.py': {
        'ravlt': {'tsbl': (1e-4, 2, 8)},
        'mavit': {'tsbl': (4e-4, 2, 32)},
    },
    'det_configs/mask_rcnn_{}_fpn_3x_coco.py': {
        'ravlt': {'sb': (1e-4, 2, 8), 'l': (1e-4, 1, 16)},
        'mavit': {'sb': (4e-4, 2, 32), 'l': (2e-4, 1, 32)},
    },
    'det_configs/cascade_mask_rcnn_{}_fpn_3x_coco.py': {
        'ravlt': {'sbl': (1e-4, 2, 8)},
        'mavit': {'sb': (4e-4, 2, 32), 'l': (2e-4, 1, 32)},
    },
    'det_configs/retinanet_{}_fpn_1x_coco.py': {
        'ravlt': {'tsbl': (1e-4, 2, 8)},
        'mavit': {'tsbl': (4e-4, 2, 32)},
    },
    'seg_configs/fpn_{}_80k_ade20k.py': {
        'ravlt': {'tsbl': (1e-4, 2, 8)},
        'mavit': {'tsbl': (1e-4, 2, 8)},
    },
    'seg_configs/upernet_{}_160k_ade20k.py': {
        'ravlt': {'sbl': (6e-5, 2, 8)},
        'mavit': {'sb': (6e-5, 2, 8), 'l': (6e-5, 1, 16)},
    },
}
ROWS = [
    (recipe, family, letter, *numbers)
    for recipe, families in RELEASED.items()
    for family, sizes in families.items()
    for letters, numbers in sizes.items()
    for letter in letters
]


@functools.cache
def load(path: str) -> Config:
    return Config.fromfile(ROOT / path)


def without_widths(node):
    """A copy without what the backbone brings: itself, and the widths that it gives to others."""
    if isinstance(node, dict):
        brought = ('backbone', 'channels', 'in_channels', 'rmt')
        return {key: without_widths(value) for key, value in node.items() if key not in brought}
    return [without_widths(value) for value in node] if isinstance(node, list) else node


def test_every_row_is_there():
    assert len(ROWS) == 42
    expected = {ROOT / recipe.format(f'{family}_{letter}') for recipe, family, letter, *_ in ROWS}
    assert expected <= set(CONFIGS)


def test_what_is_not_a_row_as_released_is_trained_in_the_tests():
    rows = {ROOT / recipe.format(f'{family}_{letter}') for recipe, family, letter, *_ in ROWS}
    assert set(CONFIGS) - rows <= set(RECIPES)


@pytest.mark.parametrize(
    ('recipe', 'family', 'letter', 'rate', 'images', 'gpus'),
    ROWS,
    ids=[Path(recipe.format(f'{family}_{letter}')).stem for recipe, family, letter, *_ in ROWS],
)
def test_a_row_is_rmts_recipe_at_the_released_rate(recipe, family, letter, rate, images, gpus):
    cfg = load(recipe.format(f'{family}_{letter}'))
    assert cfg.train_dataloader.batch_size == images
    at_base = cfg.optim_wrapper.optimizer.lr
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=16)
    assert at_base * gpus * images / 16 == pytest.approx(rate)

    ours, rmts = (without_widths(c.to_dict()) for c in (cfg, load(recipe.format('rmt_s'))))
    rmts['train_dataloader']['batch_size'] = images
    assert ours == rmts

    backbone = dict(type=TYPES[family], arch=ARCHS[letter], norm_cfg=dict(type='SyncBN'))
    if 'retinanet' in recipe:
        backbone['out_indices'] = (1, 2, 3)
    assert cfg.model.backbone == backbone


# by recipe: which of the backbone's layers are spared decay, by their kind and name
def by_name(name: str, layer: torch.nn.Module) -> bool:
    """LayerNorms and the downsamples' BN, not the stem's."""
    in_stem = name.startswith('patch_embed')
    return isinstance(layer, torch.nn.LayerNorm) or (isinstance(layer, _BatchNorm) and not in_stem)


def every_norm(name: str, layer: torch.nn.Module) -> bool:
    return isinstance(layer, (torch.nn.LayerNorm, _BatchNorm))


SPARED = {
    'mask_rcnn_{}_fpn_1x': (0.05, by_name),
    'cascade_mask_rcnn_{}_fpn_3x': (0.05, every_norm),
    'retinanet_{}_fpn_1x': (1e-4, lambda name, layer: False),
    'fpn_{}_80k': (1e-4, lambda name, layer: False),
    'upernet_{}_160k': (0.01, by_name),
}


@pytest.mark.parametrize('recipe', SPARED)
@pytest.mark.parametrize('family', TYPES)
def test_norms_are_spared_decay_as_released_and_layer_scales_are_not(recipe, family, monkeypatch):
    sizes = MODELS.get(TYPES[family]).sizes
    monkeypatch.setitem(sizes, 'small', replace(sizes['small'], depths=(1, 1, 1, 1)))
    (path,) = ROOT.glob(f'*_configs/{recipe.format(f"{family}_s")}_*.py')
    cfg = load(str(path.relative_to(ROOT)))
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        backbone = MODELS.build(cfg.model.backbone)
    groups = build_optim_wrapper(backbone, cfg.optim_wrapper).optimizer.param_groups
    found = {p: group['weight_decay'] for group in groups for p in group['params']}
    decay, spared = SPARED[recipe]
    for prefix, layer in backbone.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            assert found[parameter] == (0 if spared(prefix, layer) else decay), f'{prefix}.{name}'
