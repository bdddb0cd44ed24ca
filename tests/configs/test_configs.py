"""Configs of every recipe build, train and predict; all parameters take part."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from config_files import RECIPES
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope

from backbone.engine import apply_keys
from backbone.mavit import MAViT
from backbone.ravlt import RAVLT
from backbone.rmt import RMT


@pytest.fixture(autouse=True)
def _shallow(monkeypatch):
    """Few blocks; test_get_flops.py builds every config at full depth."""
    for family in (RMT, RAVLT, MAViT):
        for name, size in family.sizes.items():
            monkeypatch.setitem(family.sizes, name, replace(size, depths=(1, 1, 2, 1)))


def reduced(path: Path, coco: Path, ade: Path) -> Config:
    """The config on tiny images with few regions."""
    cfg = Config.fromfile(path)
    cfg.data_root = str(ade if cfg.default_scope == 'mmseg' else coco)
    apply_keys(cfg)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.pipeline = shrink(loader.dataset.pipeline)
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (96, 96)
    for stage in ('train_cfg', 'test_cfg'):
        limit_regions(cfg.model.get(stage, {}))
    return cfg


def shrink(step):
    """Sizes of a pipeline divided by 8, at least 64."""
    if isinstance(step, list):
        return [shrink(s) for s in step]
    small = {'transforms': shrink(step['transforms'])} if 'transforms' in step else {}
    for key in ('scale', 'scales', 'crop_size'):
        if key in step:
            sizes = step[key]
            each = [divide(s) for s in sizes] if key == 'scales' else divide(sizes)
            small[key] = each
    return type(step)(**{**step, **small})


def divide(size: tuple[int, int]) -> tuple[int, int]:
    return tuple(max(64, side // 8) for side in size)


def limit_regions(node) -> None:
    """At most 16 proposals, samples and detections, wherever a model's settings name a number."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ('num', 'nms_pre', 'max_per_img') and value > 16:
                node[key] = 16
            else:
                limit_regions(value)
    elif isinstance(node, list):
        for value in node:
            limit_regions(value)


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_config_builds_trains_a_step_and_predicts(path, tiny_coco, tiny_ade):
    torch.manual_seed(0)
    cfg = reduced(path, tiny_coco, tiny_ade)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    optim = build_optim_wrapper(model, cfg.optim_wrapper)

    batch = first_items(cfg.train_dataloader.dataset, cfg.train_dataloader.batch_size)
    model.train()
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    loss, _ = model.parse_losses(losses)
    assert loss.isfinite(), losses
    optim.backward(loss)
    # DDP waits for every one of them: without a gradient it would stop at the second step
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    before = model.backbone.patch_embed.proj[0].weight.detach().clone()
    optim.step()
    assert not torch.equal(before, model.backbone.patch_embed.proj[0].weight)

    model.eval()
    (sample,) = model.test_step(first_items(cfg.val_dataloader.dataset, 1))
    if cfg.default_scope == 'mmseg':
        labels = sample.pred_sem_seg.data
        assert labels.shape[-2:] == sample.ori_shape
        assert labels.min() >= 0
        assert labels.max() < 150
    else:
        assert len(sample.pred_instances.bboxes) <= 16
        assert ('masks' in sample.pred_instances) == ('mask' in path.stem)


def first_items(dataset_cfg, count: int) -> dict:
    dataset = DATASETS.build(dataset_cfg)
    return pseudo_collate([dataset[i] for i in range(count)])
