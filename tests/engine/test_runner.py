"""The runner: the learning rate scales with the batch, and the log says so."""

import pytest
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from torch import nn

from backbone.engine import PortableRunner


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
