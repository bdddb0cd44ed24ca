"""backbone.engine: the same config with an accelerator and without, and the rate it scales to."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from config_files import CONFIGS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import HOOKS
from torch import nn

from backbone.engine import PortableRunner, amp, hooks


def wrapper(**changes: object) -> OptimWrapper:
    """What mmengine builds for a config's optim_wrapper."""
    cfg = dict(
        type='AmpWhereAvailable',
        dtype='float16',
        loss_scale=512.0,
        optimizer=dict(type='AdamW', lr=1e-4),
        clip_grad=dict(max_norm=1.0),
    )
    return build_optim_wrapper(nn.Linear(2, 2), {**cfg, **changes})


def test_without_a_gpu_it_is_float32_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amp, 'on_cpu', lambda: True)
    messages = []
    monkeypatch.setattr(amp, 'print_log', lambda text, *_: messages.append(text))
    built = wrapper()
    assert type(built) is OptimWrapper
    assert built.clip_grad_kwargs == {'max_norm': 1.0}
    assert messages == ['No GPU: training in float32 instead of float16.']


@pytest.mark.parametrize('scale', [512.0, 512])
def test_with_a_gpu_it_is_what_the_config_says(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amp, 'on_cpu', lambda: False)
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    built = wrapper(loss_scale=scale)
    assert type(built) is AmpOptimWrapper
    assert built.cast_dtype is torch.float16
    assert built._scale_update_param == 512.0


@pytest.mark.parametrize(('processes', 'expected'), [(1, 1.25e-5), (8, 1e-4), (32, 4e-4)])
def test_rate_is_scaled_with_the_batch_and_logged(
    processes: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    optim = build_optim_wrapper(
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
        dict(
            optimizer=dict(type='AdamW', lr=1e-4),
            paramwise_cfg=dict(custom_keys={'1.': dict(lr_mult=0.1)}),
        ),
    )
    runner = PortableRunner.__new__(PortableRunner)
    runner._train_dataloader = dict(batch_size=2)
    runner._world_size = processes
    runner.param_schedulers = []
    runner.logger = MMLogger.get_instance('test_runner')
    lines: list[str] = []
    monkeypatch.setattr(runner.logger, 'info', lines.append)
    runner.scale_lr(optim, dict(enable=True, base_batch_size=16))
    rates = sorted({group['lr'] for group in optim.optimizer.param_groups})
    assert rates == pytest.approx([expected / 10, expected])
    assert optim.get_lr()['base_lr'] == pytest.approx([expected])
    images = 2 * processes
    assert lines[-1] == f'Learning rate: 0.0001 at 16 images a step -> {expected:g} at {images}.'


def test_rate_stays_where_scaling_is_off() -> None:
    optim = build_optim_wrapper(nn.Linear(2, 2), dict(optimizer=dict(type='AdamW', lr=1e-4)))
    runner = PortableRunner.__new__(PortableRunner)
    for setting in (None, dict(enable=False, base_batch_size=16)):
        runner.scale_lr(optim, setting)
    assert optim.get_lr()['lr'] == [1e-4]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_one_process_alone_writes_the_metrics(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = HOOKS.build(Config.fromfile(path).default_hooks.logger)
    tag = {'coco/bbox_mAP': 0.5}
    runner = SimpleNamespace(
        log_dir=tmp_path,
        timestamp='now',
        test_dataloader=[0],
        log_processor=SimpleNamespace(get_log_after_epoch=lambda *_, **__: (tag, 'a line')),
        logger=MMLogger.get_instance('test_runner'),
    )
    hook.before_run(runner)
    monkeypatch.setattr(hooks, 'is_main_process', lambda: False)
    hook.after_test_epoch(runner)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(hooks, 'is_main_process', lambda: True)
    hook.after_test_epoch(runner)
    assert json.loads((tmp_path / 'now.json').read_text()) == tag
