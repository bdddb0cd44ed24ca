"""A training that is not learning says so: a short run at its start, an invalid loss soon."""

import copy
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import Hook, ParamSchedulerHook
from mmengine.optim import LinearParamScheduler
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner


class InvalidLossError(FloatingPointError):
    """A training computes NaN or infinity. The message is one line."""


@HOOKS.register_module()
class StopAtInvalidLossHook(Hook):
    """Ends a run whose loss is NaN or infinite ``patience`` times in a row, in all processes.

    A single such loss may be passed over: in float16 the step is left out and the scale lowered.
    No checkpoint with weights that are not finite is written, so the last one is a good one.

    Raises:
        InvalidLossError: when it stops; a run that ends before it must, on such a loss, too.
    """

    priority = 'LOW'  # after the log, before the checkpoint

    def __init__(self, patience: int = 10) -> None:
        if patience < 1:
            raise ValueError(f'patience={patience}: must be at least 1')
        self.patience = patience

    def before_train(self, runner: Runner) -> None:
        self._in_a_row = 0
        self._images: list[str] = []
        self._began = ''

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        invalid = [name for name, value in _losses(outputs) if not torch.isfinite(value).all()]
        before, self._images = self._images, _images_of(data_batch)
        # gradients are averaged: what one process has, the others have at the next step
        anywhere = torch.tensor(float(bool(invalid)))
        all_reduce(anywhere, 'max')
        if not anywhere:
            self._in_a_row = 0
            return
        if not self._in_a_row:
            # the sum is named only where it has no parts
            names = ', '.join([name for name in invalid if name != 'loss'] or invalid)
            self._began = (
                names and f'{names}; {_listed(self._images)}, before that {_listed(before)}'
            )
            self._where = _iteration(runner, batch_idx)
        self._in_a_row += 1
        if self._in_a_row >= self.patience:
            self._stop(runner)

    def after_train(self, runner: Runner) -> None:
        if self._in_a_row:
            self._stop(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        parameters = {name.removeprefix('module.') for name, _ in runner.model.named_parameters()}
        for name, tensor in checkpoint['state_dict'].items():
            # a buffer may be infinite on purpose, as a mask is
            invalid = ~tensor.isfinite() if name in parameters else tensor.isnan()
            if invalid.any():
                raise InvalidLossError(
                    f'{name} has values that are NaN or infinite: no checkpoint of them is '
                    f'written. {self._advice(runner)}'
                )

    def _stop(self, runner: Runner) -> None:
        began = ' | '.join(filter(None, all_gather_object(self._began)))
        raise InvalidLossError(
            f'The loss is NaN or infinite since {self._where}, {self._in_a_row} times in a row: '
            f'stopped. It began with {began}. {self._advice(runner)}'
        )

    @staticmethod
    def _advice(runner: Runner) -> str:
        rate = max(max(rates) for rates in runner.optim_wrapper.get_lr().values())
        advice = (
            'Look at the boxes, masks and sizes of these images, then at the learning rate '
            f'({rate:.3g} now), optim_wrapper.clip_grad and the precision.'
        )
        pointer = os.path.join(runner.work_dir, 'last_checkpoint')
        if os.path.isfile(pointer):
            with open(pointer) as file:
                advice += f' The checkpoint before it: {file.read().strip()}'
        return advice


def _losses(outputs: dict | None) -> Iterator[tuple[str, torch.Tensor]]:
    """The parts of a loss by name; its sum, ``loss``, where it has no parts."""
    found = {
        name: torch.as_tensor(value) for name, value in (outputs or {}).items() if 'loss' in name
    }
    if len(found) > 1 and torch.isfinite(found.get('loss', torch.tensor(torch.nan))).all():
        return
    yield from found.items()


def _images_of(data_batch: Any) -> list[str]:
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    samples = samples if isinstance(samples, (list, tuple)) else ()
    paths = (getattr(sample, 'img_path', None) for sample in samples)
    return [path for path in paths if path]


def _listed(paths: list[str], most: int = 4) -> str:
    if not paths:
        return 'images without a path'
    more = f' and {len(paths) - most} more' if len(paths) > most else ''
    return ', '.join(paths[:most]) + more


def _iteration(runner: Runner, batch_idx: int) -> str:
    """As the log counts."""
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return f'iteration {batch_idx + 1} of epoch {runner.epoch + 1}'
    return f'iteration {runner.iter + 1}'


# --- the length of a run --------------------------------------------------------------------------


@HOOKS.register_module()
class ShortRunHook(Hook):
    """Warns, at the start, of a run that has few steps or spends most of them on its warm-up."""

    FEW = 500
    """Steps that a published recipe spends on the warm-up alone."""

    def before_train(self, runner: Runner) -> None:
        steps, epoch = runner.max_iters, len(runner.train_dataloader)
        epochs = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if steps < self.FEW:
            whole = f'{runner.max_epochs} epochs of {epoch}' if epochs else 'max_iters'
            runner.logger.warning(
                f'A short run: {steps} steps in all ({whole}). Fewer than {self.FEW} show that '
                'everything works; to learn, most trainings need some thousand.'
            )
        schedulers = runner.param_schedulers
        for index, scheduler in enumerate(schedulers if isinstance(schedulers, list) else ()):
            if not _rises(scheduler):
                continue
            unit = epoch if scheduler.by_epoch else 1
            warm_up = scheduler.end * unit
            if warm_up <= steps / 2:
                continue
            highest, full = rates(schedulers, steps - runner.iter, epoch if epochs else steps)
            runner.logger.warning(
                f'The warm-up takes {warm_up} steps, the whole run {steps}: the learning rate '
                f'reaches {highest:.3g} of {full:.3g}. Shorten it: --cfg-options '
                f'param_scheduler.{index}.end={max(2, steps // 10 // unit)}'
            )


def _rises(scheduler: Any) -> bool:
    return (
        isinstance(scheduler, LinearParamScheduler)
        and scheduler.param_name == 'lr'
        and scheduler.start_factor < scheduler.end_factor
    )


def rates(schedulers: list, steps: int, epoch: int) -> tuple[float, float]:
    """The highest learning rate in the next ``steps`` iterations, and the one without schedules.

    Args:
        epoch: iterations of an epoch.
    """
    optimizer = schedulers[0].optimizer
    groups = [{k: v for k, v in g.items() if k != 'params'} for g in optimizer.param_groups]
    stand_in = SimpleNamespace(param_groups=groups, step=optimizer.step, _global_step=0)
    copies = []
    for scheduler in schedulers:
        if scheduler.param_name == 'lr':
            copies.append(copy.copy(scheduler))
            copies[-1].optimizer = stand_in
    hook, runner = ParamSchedulerHook(), SimpleNamespace(param_schedulers=copies)
    highest = 0.0
    for step in range(steps):
        highest = max(highest, *(group['lr'] for group in groups))
        hook.after_train_iter(runner, step)
        if (step + 1) % epoch == 0:
            hook.after_train_epoch(runner)
    return highest, max(group['initial_lr'] for group in groups)
