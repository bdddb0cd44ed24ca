"""A training that is not learning says so, under mmengine's plain runner too."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import ParamSchedulerHook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODELS, PARAM_SCHEDULERS
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.structures import BaseDataElement
from processes import run

from backbone.engine import PortableRunner, watch
from backbone.engine.runner import OWN_HOOKS
from backbone.engine.watch import InvalidLossError


class Photos(list):
    """Samples as mmdet and mmseg pack them: an image, and where it came from."""

    def __init__(self, length: int = 40) -> None:
        super().__init__(
            dict(
                inputs=torch.ones(1),
                data_samples=BaseDataElement(metainfo=dict(img_path=f'{i}.jpg')),
            )
            for i in range(length)
        )


@MODELS.register_module()
class Poisoned(BaseModel):
    """A weight whose loss is NaN in some iterations; ``spreads``: its gradient is, too."""

    def __init__(self, invalid: list[int], spreads: bool, rank: int = 0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.invalid, self.spreads, self.rank = invalid, spreads, rank
        self.iteration = 0

    def forward(self, inputs: list, data_samples: list, mode: str = 'loss') -> dict:
        self.iteration += 1
        here = int(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0)
        bad = self.iteration in self.invalid and here == self.rank
        box = self.weight.sum() * (torch.nan if bad and self.spreads else 1.0)
        if bad and not self.spreads:
            box = box + torch.inf
        return dict(loss_cls=self.weight.sum() * 0.1, loss_bbox=box, acc=torch.tensor(0.5))


def build(
    work_dir: Path, kind: type[Runner] = Runner, patience: int = 3, iterations: int = 12, **model
) -> Runner:
    """A run of single images, saved every second iteration, with the hooks of every config."""
    hooks = [dict(type=name) for name in OWN_HOOKS]
    for hook in hooks:
        if hook['type'] == 'StopAtInvalidLossHook':
            hook['patience'] = patience
    return kind(
        model=dict(type='Poisoned', **model),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Photos(),
            batch_size=1,
            sampler=dict(type='InfiniteSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
        default_hooks=dict(
            checkpoint=dict(
                type='WholeCheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=1
            )
        ),
        custom_hooks=hooks,
        launcher='pytorch' if kind is PortableRunner else 'none',
        default_scope='mmengine',
        experiment_name=str(work_dir).replace('/', '_'),
        log_level='ERROR',
    )


def checkpoints(work_dir: Path) -> list[str]:
    return sorted(path.name for path in work_dir.glob('*.pth*'))


def test_it_stops_after_some_invalid_losses_in_a_row_and_says_where_it_began(
    tmp_path: Path,
) -> None:
    runner = build(tmp_path, invalid=[2, 5, 6, 7, 8], spreads=False)
    with pytest.raises(InvalidLossError) as stopped:
        runner.train()
    assert runner.iter == 6  # the seventh; a single one, the second, was passed over
    message = str(stopped.value)
    assert '\n' not in message
    assert 'since iteration 5, 3 times in a row' in message
    assert 'It began with loss_bbox; 4.jpg, before that 3.jpg.' in message
    assert 'loss_cls' not in message
    assert f'The checkpoint before it: {tmp_path / "iter_6.pth"}' in message


def test_no_checkpoint_of_invalid_weights_takes_the_place_of_a_good_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidLossError, match='weight has values that are NaN') as stopped:
        build(tmp_path, invalid=[4], spreads=True, patience=10).train()
    assert checkpoints(tmp_path) == ['iter_2.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_2.pth')
    assert str(tmp_path / 'iter_2.pth') in str(stopped.value)


def test_a_run_that_ends_on_an_invalid_loss_does_not_end_well(tmp_path: Path) -> None:
    with pytest.raises(InvalidLossError, match='since iteration 12, 1 times in a row'):
        build(tmp_path, invalid=[12], spreads=False).train()


def test_single_invalid_losses_are_passed_over(tmp_path: Path) -> None:
    build(tmp_path, invalid=[1, 2, 4, 5, 7, 8], spreads=False).train()
    assert checkpoints(tmp_path) == ['iter_12.pth']


def stop_in_two_processes(work_dir: Path) -> None:
    with pytest.raises(InvalidLossError) as stopped:
        build(work_dir, PortableRunner, invalid=[2, 3, 4], spreads=False, rank=1).train()
    rank = torch.distributed.get_rank()
    (work_dir / f'stopped_{rank}.txt').write_text(str(stopped.value))


def test_all_processes_stop_together_with_the_images_of_the_one_that_began(tmp_path: Path) -> None:
    ended = run(stop_in_two_processes, tmp_path, processes=2)
    assert [process.status for process in ended] == [0, 0], ended
    said = [(tmp_path / f'stopped_{rank}.txt').read_text() for rank in range(2)]
    assert said[0] == said[1]
    # every second image, from the second: rank 1's
    assert 'It began with loss_bbox; 3.jpg, before that 1.jpg.' in said[0]


@pytest.mark.parametrize('wrapped', [False, True])
@pytest.mark.parametrize(
    ('name', 'value', 'refused'),
    [
        ('weight', torch.inf, True),
        ('weight', torch.nan, True),
        ('mask', torch.inf, False),  # a buffer may be so on purpose
        ('mask', torch.nan, True),
    ],
)
def test_infinite_weights_are_not_saved_and_infinite_buffers_are(
    wrapped: bool, name: str, value: float, refused: bool, tmp_path: Path
) -> None:
    model = torch.nn.Linear(1, 1)
    model.register_buffer('mask', torch.zeros(2))
    state_dict = {**model.state_dict(), name: torch.tensor([0.0, value])}
    if wrapped:
        model = torch.nn.ModuleDict(dict(module=model))
    runner = SimpleNamespace(
        model=model,
        work_dir=str(tmp_path),
        optim_wrapper=SimpleNamespace(get_lr=lambda: dict(lr=[0.1])),
    )
    hook = HOOKS.build(dict(type='StopAtInvalidLossHook'))
    if refused:
        with pytest.raises(InvalidLossError, match=f'^{name} has values'):
            hook.before_save_checkpoint(runner, dict(state_dict=state_dict))
    else:
        hook.before_save_checkpoint(runner, dict(state_dict=state_dict))


def test_iterations_are_counted_as_the_log_counts_them() -> None:
    by_epoch = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)
    runner = SimpleNamespace(train_loop=by_epoch, epoch=1, iter=14)
    assert watch._iteration(runner, 4) == 'iteration 5 of epoch 2'
    runner.train_loop = None
    assert watch._iteration(runner, 4) == 'iteration 15'


def test_patience_is_at_least_one() -> None:
    with pytest.raises(ValueError, match='patience=0'):
        HOOKS.build(dict(type='StopAtInvalidLossHook', patience=0))


def test_images_are_found_in_what_mmdet_and_mmseg_collate() -> None:
    assert watch._images_of(pseudo_collate(Photos(2))) == ['0.jpg', '1.jpg']
    assert watch._images_of([torch.ones(1)]) == []


# --- the length of a run --------------------------------------------------------------------------


@pytest.fixture
def announced() -> Callable[..., list[str]]:
    """A function: what a run of that length and schedule warns of at its start."""

    def start(
        schedule: list[dict], epoch: int, epochs: int = 0, lr: float = 1.0, at: int = 0
    ) -> list[str]:
        optimizer = OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr))
        loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop) if epochs else None
        lines: list[str] = []
        runner = SimpleNamespace(
            max_iters=epoch * (epochs or 1),
            max_epochs=epochs or 1,
            iter=at,
            train_dataloader=range(epoch),
            train_loop=loop,
            logger=SimpleNamespace(warning=lines.append),
            param_schedulers=[
                PARAM_SCHEDULERS.build(dict(scheduler), default_args=dict(optimizer=optimizer))
                for scheduler in schedule
            ],
        )
        optimizer._global_step = 0  # as if it had made a step: else schedulers warn
        HOOKS.build(dict(type='ShortRunHook')).before_train(runner)
        runner.optimizer = optimizer
        start.runner = runner
        return lines

    return start


ONE_X = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]


def test_a_warm_up_longer_than_the_run_is_announced_with_the_rate_reached(announced) -> None:
    short, warm_up = announced(ONE_X, epoch=24, epochs=12, lr=1.25e-5)
    assert short.startswith('A short run: 288 steps in all (12 epochs of 24).')
    assert 'takes 500 steps, the whole run 288: ' in warm_up
    assert warm_up.endswith('param_scheduler.0.end=28')
    # the rate that the run then really reaches
    hook, runner, highest = ParamSchedulerHook(), announced.runner, 0.0
    for step in range(288):
        highest = max(highest, runner.optimizer.param_groups[0]['lr'])
        hook.after_train_iter(runner, step)
        if (step + 1) % 24 == 0:
            hook.after_train_epoch(runner)
    assert f'reaches {highest:.3g} of 1.25e-05' in warm_up
    assert 4e-6 < highest < 5e-6


@pytest.mark.parametrize(('steps', 'warnings'), [(500, 0), (499, 1)])
def test_fewer_than_500_steps_are_announced(announced, steps: int, warnings: int) -> None:
    assert len(announced([dict(ONE_X[0], end=50)], epoch=steps)) == warnings


@pytest.mark.parametrize(('end', 'warnings'), [(600, 0), (601, 1)])
def test_a_warm_up_may_take_half_of_the_run(announced, end: int, warnings: int) -> None:
    assert len(announced([dict(ONE_X[0], end=end)], epoch=1200)) == warnings


def test_a_warm_up_in_epochs_counts_their_iterations(announced) -> None:
    (line,) = announced([dict(ONE_X[0], by_epoch=True, end=7)], epoch=100, epochs=12)
    assert 'takes 700 steps, the whole run 1200: ' in line


def test_falling_schedules_and_momentum_are_no_warm_up(announced) -> None:
    falling = dict(type='LinearLR', start_factor=1.0, end_factor=0.1, by_epoch=False, end=10**6)
    momentum = dict(type='LinearMomentum', start_factor=0.1, by_epoch=False, end=10**6)
    assert announced([falling], epoch=1000) == []
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1, momentum=0.9)
    scheduler = PARAM_SCHEDULERS.build(momentum, default_args=dict(optimizer=optimizer))
    assert not watch._rises(scheduler)


def test_the_demos_are_told_no_more_than_that_they_are_short(announced) -> None:
    for path in sorted(ROOT.glob('*_configs/shapes/*_shapes.py')):
        cfg = Config.fromfile(path)
        steps = cfg.train_cfg.max_iters
        lines = announced(cfg.param_scheduler, epoch=steps)
        assert [line[:12] for line in lines] == ['A short run:'] * (steps < watch.ShortRunHook.FEW)


def test_published_recipes_are_told_nothing(announced) -> None:
    assert announced(ONE_X, epoch=7330, epochs=12) == []
    poly = [dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500)]
    assert announced(poly, epoch=160000) == []
