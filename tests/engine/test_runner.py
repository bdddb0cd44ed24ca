"""The runner: the rate scales with the batch and the log says so; it resumes whatever changed."""

import atexit
import itertools
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.runner import Runner
from released_files import MINI
from small_run import SmallModel, quick, small_config
from torch import nn

from backbone import RMT
from backbone.engine import PortableRunner, RMTRunner
from backbone.engine import runner as engine_runner
from backbone.engine.keys import lacks_weights
from backbone.engine.resume import Plan
from backbone.engine.runner import OWN_HOOKS
from backbone.engine.watch import StopAtInvalidLossHook


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


class Rates(Hook):
    """Keeps the rate that each iteration was computed with, by iteration, and the time left."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.used: dict[int, float] = {}
        self.left: list[float] = []

    def before_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        self.used[runner.iter] = runner.optim_wrapper.get_lr()['lr'][0]

    def after_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        self.left.append(runner.message_hub.get_info('eta'))


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rates]:
    """Train a small config to its end; returns what was seen on the way."""
    quick(monkeypatch)
    runs = itertools.count()

    def run(work_dir: Path, **keys: object) -> Rates:
        # runs of one second would share what mmengine keeps by name
        cfg = small_config(work_dir, experiment_name=f'run{next(runs)}', **keys)
        runner = PortableRunner.from_cfg(cfg)
        rates = Rates()
        runner.register_hook(rates)
        runner.train()
        return rates

    return run


def log(work_dir: Path) -> str:
    """All that was logged into a work directory, in the order of the runs."""
    return ''.join(p.read_text() for p in sorted(work_dir.glob('*/*.log')))


POLY = [
    dict(type='LinearLR', start_factor=0.1, end=3, by_epoch=False),
    dict(type='PolyLR', eta_min=0, power=0.9, begin=1, end=4, by_epoch=True),
]
SEVERAL_GROUPS = dict(
    optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.1),
    paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0), 'head': dict(lr_mult=3.0)}),
)


@pytest.mark.parametrize(
    ('batch', 'optim', 'schedule'),
    [
        (4, dict(optimizer=dict(type='SGD', lr=0.01)), None),
        (4, SEVERAL_GROUPS, POLY),
        (1, SEVERAL_GROUPS, POLY),
    ],
)
def test_a_run_resumed_with_another_batch_uses_the_rate_that_it_logs(
    batch: int, optim: dict, schedule: list | None, train: Callable[..., Rates], tmp_path: Path
) -> None:
    keys = dict(optim_wrapper=optim, param_scheduler=schedule)
    whole = train(tmp_path / 'whole', epochs=4, **keys)
    train(tmp_path / 'part', epochs=2, **keys)
    resumed = train(tmp_path / 'part', epochs=4, batch=batch, resume=True, **keys)
    # epochs 3 and 4 are 8 iterations of 2 numbers in one go; here of `batch`
    length = 8 // batch
    assert list(resumed.used) == list(range(2 * length, 4 * length))
    for epoch in (2, 3):
        expected = whole.used[epoch * 4] * batch / 2
        assert resumed.used[epoch * length] == pytest.approx(expected)
    assert f'{0.01:g} at 2 images a step -> {0.01 * batch / 2:g} at {batch}.' in log(
        tmp_path / 'part'
    )
    # what this run learns at and what the log says that it does
    said = re.findall(r'Epoch\(train\).*? (?:base_lr: \S+ )?lr: (\S+)', log(tmp_path / 'part'))
    assert [float(rate) for rate in said[-len(resumed.used) :]] == pytest.approx(
        list(resumed.used.values()), rel=1e-3
    )
    assert min(resumed.left) >= 0


def test_a_rate_that_the_config_changes_is_used_after_resuming(
    train: Callable[..., Rates], tmp_path: Path
) -> None:
    train(tmp_path, epochs=1, param_scheduler=None)
    faster = dict(optimizer=dict(type='SGD', lr=0.03))
    resumed = train(tmp_path, epochs=2, param_scheduler=None, resume=True, optim_wrapper=faster)
    assert set(resumed.used.values()) == {0.03}
    assert 'Resumed at another learning rate: 0.01 -> 0.03' in log(tmp_path)


def test_resuming_unchanged_touches_nothing(train: Callable[..., Rates], tmp_path: Path) -> None:
    whole = train(tmp_path / 'whole', param_scheduler=POLY, optim_wrapper=SEVERAL_GROUPS)
    keys = dict(param_scheduler=POLY, optim_wrapper=SEVERAL_GROUPS)
    train(tmp_path / 'part', epochs=1, **keys)
    resumed = train(tmp_path / 'part', epochs=2, resume=True, **keys)
    assert {i: whole.used[i] for i in resumed.used} == resumed.used
    text = log(tmp_path / 'part')
    assert 'another learning rate' not in text
    assert 'goes on as in the checkpoint' not in text
    assert 'begins at iteration' not in text


def test_a_group_that_does_not_learn_goes_on_so() -> None:
    parameters = [[nn.Parameter(torch.ones(1))] for _ in range(2)]

    def wrapper(rate: float) -> OptimWrapper:
        groups = [dict(params=p, lr=lr) for p, lr in zip(parameters, (rate, 0.0), strict=True)]
        return OptimWrapper(torch.optim.SGD(groups, lr=rate))

    resumed, lines = wrapper(0.2), []
    plan = Plan(resumed, [])
    resumed.optimizer.load_state_dict(wrapper(0.1).optimizer.state_dict())
    plan.take_effect(SimpleNamespace(info=lines.append))
    assert resumed.get_lr()['lr'] == [0.2, 0.0]
    assert len(lines) == 1


def test_processes_without_a_gpu_are_joined_as_the_config_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_runner, 'MMDistributedDataParallel', lambda **given: given)
    monkeypatch.setattr(engine_runner, 'on_cpu', lambda: True)
    runner, model = PortableRunner.__new__(PortableRunner), nn.Linear(2, 2)
    runner._distributed = True
    for keys in ({}, dict(find_unused_parameters=True)):
        runner.cfg = Config(keys)
        expected = dict(module=model, broadcast_buffers=False, find_unused_parameters=bool(keys))
        assert runner.wrap_model(None, model) == expected


def test_a_schedule_that_the_config_changes_is_said_to_be_the_old_one(
    train: Callable[..., Rates], tmp_path: Path
) -> None:
    def steps(*epochs: int) -> list[dict]:
        return [dict(type='MultiStepLR', milestones=list(epochs), by_epoch=True)]

    train(tmp_path, epochs=1, param_scheduler=steps(8, 11))
    train(tmp_path, epochs=2, param_scheduler=steps(16, 22), resume=True)
    found = re.search(r'param_scheduler\.0 goes on as in the checkpoint: (.*)', log(tmp_path))[1]
    assert '8' in found.split('now in the config')[0]
    assert '16' in found.split('now in the config')[1]


@pytest.mark.parametrize('copied', [False, True], ids=['moved', 'copied'])
def test_a_run_resumes_where_its_directory_was_moved_to(
    copied: bool, train: Callable[..., Rates], tmp_path: Path
) -> None:
    first, second = tmp_path / 'first', tmp_path / 'second'
    train(first, epochs=1)
    if copied:
        second.mkdir()
        for path in first.iterdir():
            if path.is_file():
                (second / path.name).write_bytes(path.read_bytes())
    else:
        first.rename(second)
    resumed = train(second, epochs=2, resume=True)
    assert list(resumed.used) == [4, 5, 6, 7]
    assert f'Load checkpoint from {second}/epoch_1.pth' in log(second)
    assert f'last_checkpoint says {first}/epoch_1.pth' in log(second)


def test_a_run_in_its_own_place_says_nothing_of_places(
    train: Callable[..., Rates], tmp_path: Path
) -> None:
    train(tmp_path, epochs=1)
    assert list(train(tmp_path, epochs=2, resume=True).used) == [4, 5, 6, 7]
    assert 'lies beside' not in log(tmp_path)


def test_a_checkpoint_that_is_nowhere_is_refused(
    train: Callable[..., Rates], tmp_path: Path
) -> None:
    train(tmp_path, epochs=1)
    (tmp_path / 'epoch_1.pth').unlink()
    with pytest.raises(ValueError, match=r'epoch_1\.pth'):
        train(tmp_path, epochs=2, resume=True)


@pytest.mark.parametrize('level', ['INFO', 'DEBUG'])
def test_settings_of_parameters_are_one_line_and_in_full_at_debug(
    level: str, train: Callable[..., Rates], tmp_path: Path
) -> None:
    train(tmp_path, epochs=1, optim_wrapper=SEVERAL_GROUPS, log_level=level)
    text = log(tmp_path)
    # norm: weight and bias; head: weight and bias
    assert 'paramwise_cfg: lr=0.03: 2 parameters, weight_decay=0.0: 2 parameters' in text
    each = re.findall(r'DEBUG - paramwise_options -- (\S+)', text)
    assert ('backbone.norm.bias:weight_decay=0.0' in each) == (level == 'DEBUG')
    assert len(re.findall('paramwise_options', text)) == (len(each) if level == 'DEBUG' else 0)


def test_several_optimizers_are_scaled_each(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {name: nn.Linear(2, 2) for name in ('one', 'two')}
    wrapper = OptimWrapperDict(
        **{
            name: OptimWrapper(torch.optim.SGD(part.parameters(), lr=rate))
            for (name, part), rate in zip(parts.items(), (0.1, 0.2), strict=True)
        }
    )
    runner = PortableRunner.__new__(PortableRunner)
    runner._train_dataloader = dict(batch_size=4)
    runner._world_size = 1
    runner.param_schedulers = {}
    runner.logger = logging.getLogger('test_runner')
    runner.scale_lr(wrapper, dict(enable=True, base_batch_size=2))
    assert wrapper.get_lr() == {'one.lr': [0.2], 'two.lr': [0.4]}


def test_a_model_without_an_rmt_trains_with_the_configs_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    runner = RMTRunner.from_cfg(small_config(tmp_path, epochs=1))
    assert 'backbone' not in runner.cfg.model
    runner.train()
    assert (tmp_path / 'epoch_1.pth').is_file()
    assert 'from scratch' not in log(tmp_path)


@pytest.mark.parametrize(
    'given',
    [None, [dict(type='EMAHook')], [StopAtInvalidLossHook(3)]],
    ids=['none', 'another', 'one of ours'],
)
def test_hooks_of_a_config_come_beside_ours(
    given: list | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    runner = RMTRunner.from_cfg(small_config(tmp_path, custom_hooks=given))
    found = [type(hook).__name__ for hook in runner.hooks]
    assert all(found.count(name) == 1 for name in OWN_HOOKS)
    assert 'EMAHook' not in str(given) or 'EMAHook' in found


def test_a_config_sets_what_one_of_our_hooks_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    hook = dict(type='mmengine.StopAtInvalidLossHook', patience=3)
    runner = RMTRunner.from_cfg(small_config(tmp_path, custom_hooks=[hook]))
    (found,) = (hook for hook in runner.hooks if isinstance(hook, StopAtInvalidLossHook))
    assert found.patience == 3


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1
    )
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures('group')
@pytest.mark.parametrize('ends', [True, False], ids=['ended', 'failed'])
def test_a_process_leaves_its_group_at_exit_where_its_work_came_to_its_end(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    at_exit: list[Callable] = []
    monkeypatch.setattr(atexit, 'register', at_exit.append)
    runner = RMTRunner.from_cfg(small_config(tmp_path, epochs=1))
    if not ends:
        monkeypatch.setattr(SmallModel, 'forward', lambda *_, **__: 1 / 0)
    with nullcontext() if ends else pytest.raises(ZeroDivisionError):
        runner.train()
    for each in at_exit:
        each()
    assert torch.distributed.is_initialized() is not ends


def test_an_rmt_is_found_wherever_it_is_in_a_model() -> None:
    def wrapped(init_cfg: dict | None) -> nn.Module:
        model = nn.Module()
        model.detector = nn.Module()
        model.detector.backbone = RMT(arch=MINI, init_cfg=init_cfg)
        return model

    assert lacks_weights(wrapped(None))
    assert not lacks_weights(wrapped(dict(type='Pretrained', checkpoint='a.pth')))
    assert not lacks_weights(nn.Linear(2, 2))
