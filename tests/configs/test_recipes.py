"""The released recipes: what the optimiser, the schedules and the pipelines really do."""

import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from config_files import RECIPES, family_and_size
from conftest import ROOT
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import ParamSchedulerHook
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from tiny_data import write_ade, write_coco
from torch.nn.modules.batchnorm import _BatchNorm

from backbone.engine import RMTRunner, amp, apply_keys
from backbone.mavit import MAViT
from backbone.ravlt import RAVLT
from backbone.rmt import RMT, VARIANTS

FAMILIES = {
    'mask_rcnn_1x': 'det_configs/mask_rcnn_rmt_t_fpn_1x_coco.py',
    'mask_rcnn_3x': 'det_configs/mask_rcnn_rmt_s_fpn_3x_coco.py',
    'cascade': 'det_configs/cascade_mask_rcnn_rmt_s_fpn_3x_coco.py',
    'retinanet': 'det_configs/retinanet_rmt_t_fpn_1x_coco.py',
    'fpn': 'seg_configs/fpn_rmt_t_80k_ade20k.py',
    'upernet': 'seg_configs/upernet_rmt_t_160k_ade20k.py',
    'dino': 'det_configs/dino_rmt_b_4scale_12e_coco.py',
    'dino_ravlt': 'det_configs/dino_ravlt_s_4scale_12e_coco.py',
    'mask2former': 'det_configs/mask2former_rmt_s_50e_coco.py',
    'mask2former_160k': 'seg_configs/mask2former_rmt_b_160k_ade20k.py',
    'rtmdet': 'det_configs/rtmdet_rmt_s_100e_coco.py',
    'atss': 'det_configs/atss_rmt_t_fpn_1x_coco.py',
}
KINDS = {'rmt': RMT, 'ravlt': RAVLT, 'mavit': MAViT}
DROP_PATH = {
    'rmt': {'t': 0.1, 's': 0.15, 'b': 0.4, 'l': 0.5},
    'ravlt': {'t': 0.1, 's': 0.15, 'b': 0.4, 'l': 0.55},
    'mavit': {'t': 0.1, 's': 0.15, 'b': 0.4, 'l': 0.55},
}


def load(path: str) -> Config:
    cfg = Config.fromfile(ROOT / path)
    init_default_scope(cfg.default_scope)
    return cfg


def build_on_meta(cfg: Config) -> torch.nn.Module:
    """The model without memory or values."""
    with torch.device('meta'):
        return MODELS.build(cfg.model)


# --- learning rate ------------------------------------------------------------------------------


@MODELS.register_module(force=True)
class OneWeight(BaseModel):
    """Stands for a model where only the learning rate matters."""

    def __init__(self, **_) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, *_, **__) -> None:
        raise NotImplementedError


@pytest.fixture
def scheduled(tmp_path, monkeypatch, tiny_coco, tiny_ade):
    """A function: config -> runner with its optimiser and schedulers, as ``train`` makes them."""

    monkeypatch.setattr(RMTRunner, '_log_env', lambda *_: None)  # takes a second

    def make(path: str, gpus: int) -> RMTRunner:
        cfg = load(path)
        cfg.work_dir = str(tmp_path)
        cfg.data_root = str(tiny_ade if cfg.default_scope == 'mmseg' else tiny_coco)
        cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
        cfg.model = dict(type='OneWeight', backbone=dict())
        cfg.experiment_name = f'{tmp_path.name}_{gpus}'
        runner = RMTRunner.from_cfg(cfg)
        monkeypatch.setattr(runner, '_world_size', gpus)
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
        return runner

    return make


def rates(runner: RMTRunner, steps: int, epoch: int | None = None) -> list[float]:
    """Learning rate of each of ``steps`` iterations, ``epoch`` of them an epoch."""
    hook, found = ParamSchedulerHook(), []
    group = runner.optim_wrapper.optimizer.param_groups[0]
    for step in range(steps):
        found.append(group['lr'])
        hook.after_train_iter(runner, step)
        if epoch and (step + 1) % epoch == 0:
            hook.after_train_epoch(runner)
    return found


@pytest.mark.parametrize('gpus', [1, 32])
@pytest.mark.parametrize(
    ('path', 'images', 'at_16'),
    [
        (FAMILIES['mask_rcnn_1x'], 2, 1e-4),
        (FAMILIES['retinanet'], 2, 1e-4),
        (FAMILIES['cascade'], 2, 1e-4),
        ('det_configs/mask_rcnn_rmt_l_fpn_3x_coco.py', 1, 1e-4),
        (FAMILIES['fpn'], 2, 1e-4),
        (FAMILIES['upernet'], 2, 6e-5),
        (FAMILIES['dino'], 2, 1e-4),
        (FAMILIES['mask2former'], 2, 1e-4),
        (FAMILIES['mask2former_160k'], 2, 1e-4),
        (FAMILIES['rtmdet'], 32, 1e-3 / 8),  # 1e-3 at 128
    ],
    ids=lambda value: Path(value).stem if isinstance(value, str) else None,
)
def test_rate_scales_with_the_images_of_a_step(scheduled, path, images, at_16, gpus):
    runner = scheduled(path, gpus)
    for group in runner.optim_wrapper.optimizer.param_groups:
        assert group['initial_lr'] == pytest.approx(at_16 * gpus * images / 16)


@pytest.mark.parametrize(
    ('path', 'gpus', 'rate'),
    [
        ('det_configs/mask_rcnn_rmt_b_fpn_1x_coco.py', 32, 4e-4),
        ('det_configs/mask_rcnn_rmt_l_fpn_1x_coco.py', 16, 2e-4),
        ('det_configs/mask_rcnn_rmt_l_fpn_3x_coco.py', 32, 2e-4),
        ('det_configs/retinanet_rmt_l_fpn_1x_coco.py', 16, 2e-4),
    ],
)
def test_the_released_rates_come_out_at_the_inferred_gpu_counts(scheduled, path, gpus, rate):
    group = scheduled(path, gpus).optim_wrapper.optimizer.param_groups[0]
    assert group['initial_lr'] == pytest.approx(rate)


@pytest.mark.parametrize(
    ('family', 'epochs', 'drops'),
    [
        ('mask_rcnn_1x', 12, (8, 11)),
        ('retinanet', 12, (8, 11)),
        ('mask_rcnn_3x', 36, (27, 33)),
        ('cascade', 36, (27, 33)),
    ],
)
def test_detection_warms_up_then_drops_twice(scheduled, family, epochs, drops):
    epoch = 501  # iterations; the warm-up has 500
    lr = rates(scheduled(FAMILIES[family], 8), epochs * epoch, epoch)
    assert lr[0] == pytest.approx(1e-4 * 0.001)
    assert lr[250] == pytest.approx(1e-4 * 0.5, rel=0.01)  # linear: half way
    assert lr[500] == pytest.approx(1e-4)
    first, second = (drop * epoch for drop in drops)
    assert lr[first - 1] == pytest.approx(1e-4)
    assert lr[first] == lr[second - 1] == pytest.approx(1e-5)
    assert lr[second] == lr[-1] == pytest.approx(1e-6)
    assert load(FAMILIES[family]).train_cfg.max_epochs == epochs


def test_semantic_fpn_falls_by_a_power_to_its_floor(scheduled):
    runner = scheduled(FAMILIES['fpn'], 8)
    lr = rates(runner, 80000)
    assert lr[0] == pytest.approx(1e-4)  # no warm-up
    assert lr[40000] == pytest.approx((1e-4 - 1e-6) * 0.5**0.9 + 1e-6, rel=1e-3)
    assert lr[-1] == pytest.approx(1e-6, rel=0.01)
    assert lr == sorted(lr, reverse=True)
    assert runner.cfg.train_cfg.max_iters == 80000


def test_upernet_warms_up_then_falls_to_zero(scheduled):
    runner = scheduled(FAMILIES['upernet'], 8)
    lr = rates(runner, 160000)
    assert lr[0] == pytest.approx(6e-5 * 1e-6)
    assert lr[750] == pytest.approx(3e-5, rel=0.01)
    assert lr[1500] == pytest.approx(6e-5, rel=1e-3)
    assert lr[80750] == pytest.approx(3e-5, rel=0.01)  # half way from 1500 to 160000
    assert 0 <= lr[-1] < 1e-9
    assert max(lr) <= 6e-5 * (1 + 1e-6)
    assert runner.cfg.train_cfg.max_iters == 160000


# --- weight decay -------------------------------------------------------------------------------


def is_norm(module: torch.nn.Module) -> bool:
    return isinstance(module, (_BatchNorm, torch.nn.LayerNorm, torch.nn.GroupNorm))


def is_norm_or_bias(name: str, module: torch.nn.Module) -> bool:
    return is_norm(module) or name.endswith('bias')


def is_norm_or_embedding(name: str, module: torch.nn.Module) -> bool:
    return is_norm(module) or name.split('.')[-2] in ('query_embed', 'query_feat', 'level_embed')


# by family: the decay, and whether a parameter goes without, from its name and its layer
DECAY = {
    'mask_rcnn_1x': (0.05, lambda name, layer: 'norm' in name),
    'mask_rcnn_3x': (0.05, lambda name, layer: 'norm' in name),
    'cascade': (0.05, lambda name, layer: 'norm' in name or is_norm(layer)),
    'retinanet': (1e-4, lambda name, layer: False),
    'fpn': (1e-4, lambda name, layer: False),
    'upernet': (0.01, lambda name, layer: 'norm' in name),
    'dino': (0.05, is_norm_or_bias),
    'dino_ravlt': (0.05, is_norm_or_bias),
    'mask2former': (0.05, is_norm_or_embedding),
    'mask2former_160k': (0.05, is_norm_or_embedding),
    'rtmdet': (0.05, is_norm_or_bias),
    'atss': (0.05, lambda name, layer: 'norm' in name),
}
SLOW_BACKBONE = ('dino', 'dino_ravlt', 'mask2former', 'mask2former_160k')


@pytest.mark.parametrize('family', FAMILIES)
def test_each_parameter_decays_and_learns_as_the_recipe_says(family):
    cfg = load(FAMILIES[family])
    model = build_on_meta(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    found = {p: group for group in optimizer.param_groups for p in group['params']}
    decay, spared = DECAY[family]
    rate = cfg.optim_wrapper.optimizer.lr
    for prefix, layer in model.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            name = f'{prefix}.{name}'
            expected = 0 if spared(name, layer) else decay
            assert found[parameter]['weight_decay'] == expected, name
            slow = family in SLOW_BACKBONE and name.startswith('backbone.')
            assert found[parameter]['lr'] == pytest.approx(rate / 10 if slow else rate), name
    assert type(optimizer) is torch.optim.AdamW
    assert {group['betas'] for group in optimizer.param_groups} == {(0.9, 0.999)}


def test_mask_rcnn_decays_the_stems_norms_but_no_other_of_the_backbone():
    backbone = build_on_meta(load(FAMILIES['mask_rcnn_1x'])).backbone
    _, spared = DECAY['mask_rcnn_1x']
    decayed = {
        n for n, layer in backbone.named_modules() if is_norm(layer) and not spared(n, layer)
    }
    assert decayed == {f'patch_embed.proj.{i}' for i in (1, 4, 7, 10)}


# --- precision and drop path --------------------------------------------------------------------


# by the beginning of a config's name: the loss scale, before and after infinite gradients
SCALES = {
    'mask_rcnn': (65536, 32768),  # dynamic: PyTorch's first, and half of it
    'cascade': (65536, 32768),
    'retinanet': (512, 512),
    'upernet': (512, 512),
    'atss': (65536, 32768),
    'fpn': None,  # float32
    'dino': None,
    'mask2former': None,
    'rtmdet': None,
}


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_precision_and_loss_scale_on_a_gpu_are_the_released_ones(path, monkeypatch):
    monkeypatch.setattr(amp, 'on_cpu', lambda: False)
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', partial(torch.amp.GradScaler, 'cpu'))
    model = OneWeight()
    wrapper = build_optim_wrapper(model, load(path).optim_wrapper)
    scales = next(value for name, value in SCALES.items() if path.stem.startswith(name))
    if scales is None:
        assert type(wrapper) is OptimWrapper
        return
    assert type(wrapper) is AmpOptimWrapper
    assert wrapper.cast_dtype == torch.float16
    before = wrapper.loss_scaler.get_scale()
    wrapper.update_params(model.weight.sum() * torch.inf)
    assert (before, wrapper.loss_scaler.get_scale()) == scales
    assert model.weight.isfinite().all()  # the step was left out


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_config_has_the_backbone_of_its_name(path):
    family, letter = family_and_size(path)
    with torch.device('meta'):
        backbone = MODELS.build(load(path).model.backbone)
    assert type(backbone) is KINDS[family]
    assert backbone.variant.letter == letter.upper()
    assert backbone.variant in KINDS[family].sizes.values()
    blocks = [block for stage in backbone.layers for block in stage.blocks]
    assert blocks[0].drop_path.rate == 0
    drop_path = DROP_PATH[family].get(letter, backbone.variant.drop_path)
    assert blocks[-1].drop_path.rate == pytest.approx(drop_path)
    norms = {type(m) for m in backbone.modules() if isinstance(m, _BatchNorm)}
    assert norms == {torch.nn.SyncBatchNorm}
    from_stage_2 = path.stem.startswith(('retinanet', 'dino', 'rtmdet', 'atss'))
    stages = (1, 2, 3) if from_stage_2 else (0, 1, 2, 3)
    assert backbone.out_indices == stages
    assert backbone.norm_eval is False
    assert backbone.frozen_stages == -1


# --- heads --------------------------------------------------------------------------------------


def test_cascade_heads_are_the_released_convolutional_ones():
    model = build_on_meta(load(FAMILIES['cascade']))
    assert len(model.roi_head.bbox_head) == 3
    for head in model.roi_head.bbox_head:
        assert len(head.shared_convs) == 4
        assert len(head.shared_fcs) == 1
        assert all(isinstance(c.bn, torch.nn.SyncBatchNorm) for c in head.shared_convs)
        assert head.fc_reg.out_features == 4 * 80  # a box for each class
        assert head.reg_decoded_bbox
        assert (type(head.loss_bbox).__name__, head.loss_bbox.loss_weight) == ('GIoULoss', 10)
    rpn_loss = model.rpn_head.loss_bbox
    assert (type(rpn_loss).__name__, rpn_loss.beta) == ('SmoothL1Loss', 1 / 9)


def test_retinanet_makes_its_extra_levels_from_the_last_feature():
    model = build_on_meta(load(FAMILIES['retinanet']))
    widths = VARIANTS['tiny'].channels
    assert [conv.in_channels for conv in model.neck.lateral_convs] == list(widths[1:])
    assert model.neck.fpn_convs[3].in_channels == widths[-1]
    features = [
        torch.empty(1, c, s, s, device='meta')
        for c, s in zip(widths[1:], (64, 32, 16), strict=True)
    ]
    assert [f.shape[-1] for f in model.neck(features)] == [64, 32, 16, 8, 4]


@pytest.mark.parametrize('path', [p for p in RECIPES if p.parent.name == 'seg_configs'])
def test_segmentation_keeps_the_best_miou(path):
    assert load(path).default_hooks.checkpoint.save_best == 'mIoU'


def test_dino_makes_its_fourth_level_from_the_last_feature():
    neck, widths = build_on_meta(load(FAMILIES['dino'])).neck, VARIANTS['base'].channels
    assert [conv.conv.in_channels for conv in neck.convs] == list(widths[1:])
    assert [conv.conv.in_channels for conv in neck.extra_convs] == [widths[-1]]


def test_mask2former_reads_all_stages():
    head = build_on_meta(load(FAMILIES['mask2former_160k'])).decode_head
    widths = list(VARIANTS['base'].channels)
    assert [c.conv.in_channels for c in head.pixel_decoder.input_convs] == widths[:0:-1]
    assert [c.conv.in_channels for c in head.pixel_decoder.lateral_convs] == widths[:1]
    assert head.loss_cls.class_weight == [1.0] * 150 + [0.1]


# --- images -------------------------------------------------------------------------------------

LANDSCAPE, PORTRAIT, PANORAMA = (480, 640), (640, 480), (240, 640)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """COCO and ADE20K data of three pictures each: landscape, portrait, panorama."""
    root = tmp_path_factory.mktemp('images')
    sizes = [LANDSCAPE, PORTRAIT, PANORAMA]
    return {'mmdet': write_coco(root / 'coco', sizes), 'mmseg': write_ade(root / 'ade', sizes)}


def dataset(family: str, images: dict, split: str = 'train'):
    cfg = load(FAMILIES[family])
    cfg.data_root = str(images[cfg.default_scope])
    return DATASETS.build(apply_keys(cfg)[f'{split}_dataloader'].dataset)


def padded(family: str, *items: dict) -> torch.Size:
    """Size of a training batch as the model sees it."""
    preprocessor = MODELS.build(load(FAMILIES[family]).model.data_preprocessor)
    return preprocessor(pseudo_collate(items), training=True)['inputs'].shape


def size(item: dict) -> tuple[int, int]:
    return tuple(item['inputs'].shape[1:])


@pytest.mark.parametrize('family', ['mask_rcnn_1x', 'retinanet'])
def test_1x_resizes_to_800_by_1333_at_most_and_pads_to_32(family, images):
    for split in ('train', 'val'):
        data = dataset(family, images, split)
        assert [size(data[i]) for i in range(3)] == [(800, 1067), (1067, 800), (500, 1333)]
    data = dataset(family, images)
    assert padded(family, data[0], data[2]) == (2, 3, 800, 1344)


@pytest.mark.parametrize('family', ['mask_rcnn_1x', 'mask_rcnn_3x', 'cascade', 'retinanet'])
def test_half_of_the_training_images_are_flipped_and_none_in_testing(family, images):
    np.random.seed(0)
    data = dataset(family, images)
    flips = [data[1]['data_samples'].flip for _ in range(16)]
    assert 3 <= sum(flips) <= 13
    assert 'flip' not in dataset(family, images, 'val')[0]['data_samples']


@pytest.mark.parametrize('family', ['mask_rcnn_3x', 'cascade'])
def test_3x_resizes_or_crops_and_resizes_to_480_up_to_800(family, images):
    np.random.seed(0)
    random.seed(0)
    data = dataset(family, images)
    shorts, cropped = set(), 0
    for _ in range(40):
        item = data[0]
        height, width = size(item)
        assert max(height, width) <= 1333
        if max(height, width) < 1333:
            assert min(height, width) in range(480, 801, 32)
            shorts.add(min(height, width))
        # a crop leaves another shape than the picture's 3:4
        cropped += abs(width / height - 4 / 3) > 0.01
        truth = item['data_samples'].gt_instances
        assert truth.masks.masks.shape[1:] == (height, width)
        assert len(truth.bboxes) == len(truth.labels) == len(truth.masks)
    assert len(shorts) > 5
    assert 10 <= cropped <= 30


def test_the_crop_of_3x_is_of_384_to_600_pixels(images):
    np.random.seed(0)
    pipeline = load(FAMILIES['mask_rcnn_3x']).train_pipeline
    (_, (before, crop, _)) = pipeline[3]['transforms']
    assert [short for short, _ in before['scales']] == [400, 500, 600]
    steps = Compose([*pipeline[:2], before, crop])
    data = dataset('mask_rcnn_3x', images)
    for i in range(20):
        height, width = steps(data.get_data_info(i % 3))['img'].shape[:2]
        assert height <= 600
        assert width <= 600
        # only where the picture is smaller is the crop smaller than 384
        assert min(height, width) >= 384 or i % 3 == 2


@pytest.mark.parametrize('family', ['fpn', 'upernet', 'mask2former_160k'])
def test_ade_crops_to_512_and_pads_what_is_smaller(family, images):
    np.random.seed(0)
    data = dataset(family, images)
    items = [data[i % 3] for i in range(12)]
    sizes = [size(item) for item in items]
    assert all(max(s) <= 512 for s in sizes)
    assert (512, 512) in sizes
    assert min(map(min, sizes)) < 512  # ratio 0.5: shorter than the crop
    assert padded(family, *items) == (12, 3, 512, 512)
    for item in items:
        labels = item['data_samples'].gt_sem_seg.data
        assert tuple(labels.shape[1:]) == size(item)
        assert set(labels.unique().tolist()) <= {0, 1, 2, 255}  # from 1, 2, 3 and other


@pytest.mark.parametrize('family', ['fpn', 'upernet', 'mask2former_160k'])
def test_ade_is_tested_whole_at_short_side_512_against_unresized_truth(family, images):
    data = dataset(family, images, 'val')
    assert [size(data[i]) for i in range(3)] == [(512, 683), (683, 512), (512, 1365)]
    assert data[2]['data_samples'].gt_sem_seg.data.shape[1:] == PANORAMA
    assert build_on_meta(load(FAMILIES[family])).test_cfg.mode == 'whole'


@pytest.mark.parametrize('family', FAMILIES)
def test_pixels_are_rgb_and_normalised(family):
    cfg = load(FAMILIES[family])
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    assert preprocessor._channel_conversion
    assert preprocessor.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert preprocessor.std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])
