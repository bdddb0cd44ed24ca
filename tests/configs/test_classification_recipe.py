"""The released recipe of classifiers: what optimiser, average, sampler and pipelines really do."""

from collections import Counter
from functools import partial
from math import cos, pi
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.hooks import ParamSchedulerHook
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import DATA_SAMPLERS, HOOKS, MODELS, init_default_scope

from backbone.engine import RMTRunner, amp

IMAGENET = 'cls_configs/rmt_b_300e_in1k.py'


def load(path: str = IMAGENET) -> Config:
    cfg = Config.fromfile(ROOT / path)
    init_default_scope(cfg.default_scope)
    return cfg


class OneLayer(BaseModel):
    """Stands for a model where only the weights matter."""

    def __init__(self, **_) -> None:
        super().__init__()
        self.layer = torch.nn.BatchNorm1d(1)

    def forward(self, *_, **__) -> None:
        raise NotImplementedError


# --- learning rate -------------------------------------------------------------------------------


@pytest.fixture
def rates(tmp_path, monkeypatch):
    """A function: GPUs and images of each -> the rate of both iterations of all epochs."""
    for method in ('_log_env', 'dump_config'):
        monkeypatch.setattr(RMTRunner, method, lambda *_: None)

    def run(gpus: int, images: int) -> list[tuple[float, float]]:
        cfg = load()
        cfg.work_dir = str(tmp_path)
        cfg.experiment_name = f'{tmp_path.name}_{gpus}'
        cfg.train_dataloader.update(batch_size=images, dataset=[0])
        cfg.custom_hooks = []
        monkeypatch.setattr(RMTRunner, 'build_model', lambda *_: OneLayer())
        runner = RMTRunner.from_cfg(cfg)
        monkeypatch.setattr(runner, '_world_size', gpus)
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
        hook, found = ParamSchedulerHook(), []
        group = runner.optim_wrapper.optimizer.param_groups[0]
        for _ in range(cfg.train_cfg.max_epochs):
            of_epoch = []
            for step in range(2):
                of_epoch.append(group['lr'])
                hook.after_train_iter(runner, step)
            hook.after_train_epoch(runner)
            found.append(tuple(of_epoch))
        return found

    return run


@pytest.mark.parametrize(('gpus', 'images'), [(8, 256), (1, 64)])
def test_rate_warms_up_for_five_epochs_then_falls_by_a_cosine(gpus, images, rates):
    found = rates(gpus, images)
    part = gpus * images / 2048
    assert len(found) == 300
    assert all(first == second for first, second in found)  # changed once an epoch
    for epoch in (0, 1, 4):
        expected = 1e-6 + epoch / 5 * (2e-3 - 1e-6)
        assert found[epoch][0] == pytest.approx(part * expected), epoch
    for epoch in (5, 6, 100, 299):
        expected = 1e-5 + (2e-3 - 1e-5) * (1 + cos(pi * (epoch - 5) / 295)) / 2
        assert found[epoch][0] == pytest.approx(part * expected), epoch


# --- decay, precision, average -------------------------------------------------------------------


def test_vectors_and_biases_are_spared_decay_and_layer_scales_are_not():
    cfg = load()
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decays = {p: g['weight_decay'] for g in wrapper.optimizer.param_groups for p in g['params']}
    for name, parameter in model.named_parameters():
        spared = parameter.ndim == 1 or name.endswith('.bias')
        assert decays[parameter] == (0 if spared else 0.05), name
    scales = [p for name, p in model.named_parameters() if 'gamma_' in name]
    assert {decays[p] for p in scales} == {0.05}
    assert type(wrapper.optimizer) is torch.optim.AdamW
    groups = wrapper.optimizer.param_groups
    assert {(group['betas'], group['eps']) for group in groups} == {((0.9, 0.999), 1e-8)}
    assert wrapper.clip_grad_kwargs is None


def test_precision_on_a_gpu_is_float16_with_a_dynamic_scale(monkeypatch):
    monkeypatch.setattr(amp, 'on_cpu', lambda: False)
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', partial(torch.amp.GradScaler, 'cpu'))
    wrapper = build_optim_wrapper(OneLayer(), load().optim_wrapper)
    assert type(wrapper) is AmpOptimWrapper
    assert wrapper.cast_dtype == torch.float16
    assert wrapper.loss_scaler.get_scale() == 65536


@pytest.mark.parametrize(('gpus', 'images'), [(8, 256), (1, 64)])
def test_average_decays_by_as_much_for_as_many_images(gpus, images):
    (cfg,) = load().custom_hooks
    hook, model = HOOKS.build(cfg), OneLayer()
    model.layer.weight.data.zero_()
    runner = SimpleNamespace(
        model=model,
        max_iters=9,
        iter=0,
        world_size=gpus,
        train_dataloader=SimpleNamespace(batch_size=images),
        logger=SimpleNamespace(info=lambda text: None),
    )
    hook.before_run(runner)
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
    average, weights = hook.ema_model.module.layer, model.layer
    for tensor in (weights.weight.data, weights.running_mean):
        tensor += 1
    before = average.weight.clone(), average.running_mean.clone()
    hook.after_train_iter(runner, 1)
    decay = 0.99984 ** (gpus * images / 2048)
    for old, new in zip(before, (average.weight, average.running_mean), strict=True):
        assert float(new - old) == pytest.approx(1 - decay, rel=1e-3)


# --- images --------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    """An image of 300 x 400 pixels with a gradient and some noise."""
    path = str(tmp_path_factory.mktemp('photos') / 'photo.png')
    rng = np.random.default_rng(0)
    picture = np.linspace(60, 200, 400)[None, :, None] + rng.normal(0, 10, (300, 400, 3))
    cv2.imwrite(path, picture.clip(0, 255).astype(np.uint8))
    return path


def packed(path: str, photo: str, split: str, label: int = 0) -> dict:
    """The image as the pipeline of a config gives it."""
    cfg = load(path)
    steps = cfg[f'{split}_dataloader'].dataset.pipeline
    with_file = steps[0]['type'] == 'LoadImageFromFile'
    image = dict(img_path=photo) if with_file else dict(img=cv2.imread(photo)[:32, :32])
    return Compose(steps)(dict(image, gt_label=label))


SIZES = {'rmt_t_300e_in1k': 224, 'rmt_t_folder': 224, 'rmt_t_cifar10': 64}


@pytest.mark.parametrize('name', SIZES)
@pytest.mark.parametrize('split', ['train', 'test'])
def test_images_have_the_size_of_the_recipe(name, split, photo):
    item = packed(f'cls_configs/{name}.py', photo, split)
    assert tuple(item['inputs'].shape) == (3, SIZES[name], SIZES[name])
    assert item['inputs'].dtype == torch.uint8


def test_a_test_image_is_the_middle_of_the_image_at_256_pixels(photo):
    found = packed(IMAGENET, photo, 'test')['inputs'].float().mean((0, 1))  # a line of the gradient
    # 300 x 400 -> 256 x 341; the middle 224 columns are from 58.5 to 282.5 of 341
    column = (58.5 + np.arange(224) + 0.5) / 341
    assert np.abs(found.numpy() - (60 + 140 * column)).max() < 4


def test_training_images_differ_and_a_quarter_has_noise_in_a_part(photo):
    np.random.seed(0)
    cfg = load()
    *before, erase, _ = cfg.train_dataloader.dataset.pipeline
    assert [step['type'] for step in before] == [
        'LoadImageFromFile',
        'RandomResizedCrop',
        'RandomFlip',
        'RandAugment',
    ]
    steps = Compose(before)
    first, second = (steps(dict(img_path=photo))['img'] for _ in range(2))
    assert (first != second).mean() > 0.1
    eraser, erased = Compose([erase]), 0
    for _ in range(60):
        image = np.full((224, 224, 3), 128, np.uint8)
        changed = (eraser(dict(img=image.copy()))['img'] != image).any(-1)
        if changed.any():
            erased += 1
            assert 0.01 < changed.mean() < 0.34
            rows, columns = np.nonzero(changed)
            inside = changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert inside.mean() > 0.99  # a rectangle, each pixel drawn for itself
    assert 6 <= erased <= 26


def test_each_batch_is_mixed_one_way_or_the_other_and_the_labels_with_it(photo):
    np.random.seed(0)
    torch.manual_seed(0)
    model_cfg = load().model
    model_cfg.pop('backbone')
    preprocessor = MODELS.build({**model_cfg, 'backbone': torch.nn.Identity()}).data_preprocessor
    mean = torch.tensor(model_cfg.data_preprocessor.mean)[:, None, None]
    std = torch.tensor(model_cfg.data_preprocessor.std)[:, None, None]
    ways = Counter()
    for _ in range(24):
        items = [packed_plain(label) for label in range(4)]
        out = preprocessor(
            dict(
                inputs=[item['inputs'] for item in items],
                data_samples=[item['data_samples'] for item in items],
            ),
            training=True,
        )
        assert out['inputs'].shape == (4, 3, 32, 32)
        for image, sample, label in zip(out['inputs'], out['data_samples'], range(4), strict=True):
            score = sample.gt_score
            assert score.sum() == pytest.approx(1, abs=1e-4)
            # every image is grey at a level of its label, so its own share can be told
            levels = ((image * std + mean) / 50).mean(0)
            share = float(score[label])
            other = float((score * torch.arange(1000.0)).sum())
            assert float(levels.mean()) == pytest.approx(other, abs=0.02)
            if share < 0.999:
                pasted = len(levels.mul(100).round().unique()) > 1
                ways['cutmix' if pasted else 'mixup'] += 1
    assert min(ways['cutmix'], ways['mixup']) > 10


def packed_plain(label: int) -> dict:
    """An image of one grey, 50 levels a label."""
    image = np.full((32, 32, 3), 50 * label, np.uint8)
    return Compose([dict(type='PackInputs')])(dict(img=image, gt_label=label))


def test_labels_are_smoothed_by_a_tenth():
    head = MODELS.build(load().model.head)
    logits = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(2, 1000)
    target[0, 3], target[1, 5], target[1, 8] = 1, 0.25, 0.75
    expected = -((0.9 * target + 0.1 / 1000) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(head.loss_module(logits, target, avg_factor=2), expected)


def test_the_three_copies_of_an_image_go_to_different_gpus(monkeypatch):
    cfg, order = load().train_dataloader.sampler, []
    for rank in range(4):
        monkeypatch.setattr(
            'mmpretrain.datasets.samplers.repeat_aug.get_dist_info', lambda rank=rank: (rank, 4)
        )
        order.append(list(DATA_SAMPLERS.build({**cfg, 'dataset': range(12), 'seed': 0})))
    assert [len(of_rank) for of_rank in order] == [3] * 4  # an epoch is as long as without
    together = np.array(order).T.ravel().tolist()
    assert together == [i for i in together[::3] for _ in range(3)]
    assert len(set(together)) == 4
