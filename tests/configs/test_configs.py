"""Configs of every recipe, and of docs/any-head.md, build, train and predict."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from config_files import RECIPES
from conftest import ROOT
from docs_blocks import Block, blocks
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope

from backbone.engine import apply_keys
from backbone.mavit import MAViT
from backbone.ravlt import RAVLT
from backbone.rmt import RMT


@pytest.fixture
def _small(monkeypatch):
    """One narrow block a stage, of other widths in every size; the configs take theirs from here.

    In full test_convert_checkpoint.py builds every config of RMT, test_get_flops.py the papers'.
    """
    for family in (RMT, RAVLT, MAViT):
        for i, (name, size) in enumerate(family.sizes.items()):
            heads = tuple(range(2 + i, 6 + i))
            widths = tuple(8 * n for n in heads)
            small = replace(size, depths=(1, 1, 1, 1), channels=widths, heads=heads)
            monkeypatch.setitem(family.sizes, name, small)


def reduced(path: Path, coco: Path, ade: Path) -> Config:
    """The config on tiny images, with narrow heads, few regions, queries and layers."""
    cfg = Config.fromfile(path)
    cfg.data_root = str(ade if cfg.default_scope == 'mmseg' else coco)
    apply_keys(cfg)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.pipeline = shrink(loader.dataset.pipeline)
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (64, 64)
    if 'encoder' in cfg.model:  # of DETR's kind: what its head does not say is 256
        cfg.model.bbox_head.setdefault('embed_dims', 256)
    limit(cfg.model)
    return cfg


def shrink(step):
    """Sizes of a pipeline divided by 8, as multiples of 32, at least 64."""
    if isinstance(step, list):
        return [shrink(s) for s in step]
    small = {'transforms': shrink(step['transforms'])} if 'transforms' in step else {}
    for key in ('scale', 'scales', 'crop_size', 'img_scale', 'size'):
        if key in step:
            sizes = step[key]
            each = [divide(s) for s in sizes] if key == 'scales' else divide(sizes)
            small[key] = each
    return type(step)(**{**step, **small})


def divide(size: int | tuple[int, int]) -> int | tuple[int, int]:
    if isinstance(size, int):
        return max(64, size // 256 * 32)
    return tuple(map(divide, size))


MOST = dict(
    num=16, nms_pre=16, max_per_img=16, max_per_image=16, num_queries=20, num_dn_queries=8,
    num_layers=1, num_points=64,
)  # fmt: skip
"""By the name of a model's setting: proposals, samples, detections, queries, layers, points."""

WIDTHS = {
    'channels', 'in_channels', 'out_channels', 'feat_channels', 'conv_out_channels',
    'fc_out_channels', 'feedforward_channels', 'embed_dims', 'num_feats',
}  # fmt: skip
"""Of necks and heads. What does not fit together does not either when all are divided by 4."""


def limit(node) -> None:
    """At most so many, and a quarter as wide, wherever a model's settings name a number."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key in MOST and value > MOST[key]:
            node[key] = MOST[key]
        elif key in WIDTHS:
            node[key] = narrow(value)
        elif key == 'num_groups' and value:
            node[key] = value // 8
        elif key == 'batch_augments' and value:
            node[key] = shrink(value)
        elif isinstance(value, (dict, list)):
            limit(value)


def narrow(width: int | list[int]) -> int | list[int]:
    """A quarter; the backbone's are narrow already, below 128."""
    if isinstance(width, list):
        return [narrow(each) for each in width]
    return width // 4 if width >= 128 else width


@pytest.mark.usefixtures('_small')
@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_config_builds_trains_a_step_and_predicts(path, tiny_coco, tiny_ade):
    sample = train_a_step_and_predict(reduced(path, tiny_coco, tiny_ade))
    if path.parent.name == 'det_configs':
        assert len(sample.pred_instances.bboxes) <= 16
        assert ('masks' in sample.pred_instances) == ('mask' in path.stem)


@pytest.fixture(
    params=[b for b in blocks(ROOT / 'docs/any-head.md') if b.is_config], ids=Block.__str__
)
def of_the_guide(request, tmp_path) -> Path:
    """A config of docs/any-head.md, beside what it inherits."""
    for folder in ('backbone', 'det_configs', 'seg_configs'):
        (tmp_path / folder).symlink_to(ROOT / folder)
    path = tmp_path / request.param.file_name
    path.write_text(request.param.text)
    return path


@pytest.mark.usefixtures('_small')
def test_head_of_the_guide_trains_a_step_and_predicts(of_the_guide, tiny_coco, tiny_ade):
    train_a_step_and_predict(reduced(of_the_guide, tiny_coco, tiny_ade))


def test_head_of_the_guide_builds_at_full_width(of_the_guide):
    cfg = Config.fromfile(of_the_guide)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        assert MODELS.build(cfg.model).backbone.out_channels[-1] == 512


def train_a_step_and_predict(cfg: Config):
    """What the model of a config finds in an image, after a step in which every weight learns."""
    torch.manual_seed(0)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    if hasattr(model, 'level_embed'):  # of DINO: memory as it lies, until weights are initialised
        torch.nn.init.normal_(model.level_embed)
    optim = build_optim_wrapper(model, cfg.optim_wrapper)

    count = min(2, cfg.train_dataloader.batch_size)
    batch = first_items(cfg.train_dataloader.dataset, count)
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
    return sample


def first_items(dataset_cfg, count: int) -> dict:
    # else it collects all garbage of the process, half a second
    dataset = DATASETS.build(dict(dataset_cfg, serialize_data=False))
    return pseudo_collate([dataset[i] for i in range(count)])
