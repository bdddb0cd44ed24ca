"""Resuming with another batch, another epoch length, or in another place."""

import logging
import os
from typing import Any

from mmengine.runner import EpochBasedTrainLoop, Runner, find_latest_checkpoint

from .explain import arguments


def checkpoint_beside(work_dir: str, logger: logging.Logger) -> str | None:
    """The last checkpoint where ``work_dir`` was moved or copied since; None if it was not.

    mmengine keeps an absolute path in ``last_checkpoint``.
    """
    path = find_latest_checkpoint(work_dir)
    beside = os.path.join(work_dir, os.path.basename(path or ''))
    if not path or not os.path.isfile(beside) or os.path.realpath(path) == os.path.realpath(beside):
        return None
    logger.info(f'last_checkpoint says {path}; resuming from {beside}, which lies beside it.')
    return beside


def count_epochs_anew(runner: Runner) -> None:
    """Let the iteration be that at which the epoch begins, however many images a step now takes.

    mmengine goes on from the stored one: with a larger batch it soon passes the last.
    """
    loop = runner.train_loop
    if not isinstance(loop, EpochBasedTrainLoop):
        return
    first = loop.epoch * len(loop.dataloader)
    if loop.iter != first:
        runner.logger.info(
            f'Epoch {loop.epoch + 1} begins at iteration {first}, of {len(loop.dataloader)} an '
            f'epoch; the checkpoint was made at {loop.iter}.'
        )
        loop._iter = first


class Plan:
    """The learning rates and schedules that the config describes, before a checkpoint's come.

    mmengine takes both from the checkpoint: a rate that was changed in the config, or scaled to
    another batch, would be logged and not used.
    """

    def __init__(self, wrapper: Any, schedulers: Any) -> None:
        # with several optimizers the checkpoint's word is the last
        self.wrapper = wrapper if isinstance(getattr(wrapper, 'param_groups', None), list) else None
        self.schedulers = schedulers if isinstance(schedulers, list) and self.wrapper else []
        self.rates = [] if self.wrapper is None else [_rate(g) for g in self.wrapper.param_groups]
        self.states = [dict(scheduler.state_dict()) for scheduler in self.schedulers]

    def take_effect(self, logger: logging.Logger) -> None:
        """Scale what was resumed to the config's rates; say which schedules differ from it."""
        if self.wrapper is None:
            return
        groups = self.wrapper.param_groups
        old = [_rate(group) for group in groups]
        ratios = [new / was if was else 1.0 for new, was in zip(self.rates, old, strict=True)]
        if any(ratio != 1 for ratio in ratios):
            self._scale(ratios)
            logger.info(
                f'Resumed at another learning rate: {max(old):g} -> {max(self.rates):g} before '
                f'schedules, {max(group["lr"] for group in groups):g} now.'
            )
        for i, (scheduler, state) in enumerate(zip(self.schedulers, self.states, strict=True)):
            now = scheduler.state_dict()
            settings = arguments(type(scheduler)) - {'last_step'}
            differ = [key for key in state if key in settings and state[key] != now.get(key)]
            if differ:
                kept = ', '.join(f'{key}={now.get(key)}' for key in differ)
                logger.warning(
                    f'param_scheduler.{i} goes on as in the checkpoint: {kept} (now in the config: '
                    f'{", ".join(f"{key}={state[key]}" for key in differ)}).'
                )

    def _scale(self, ratios: list[float]) -> None:
        for group, ratio in zip(self.wrapper.param_groups, ratios, strict=True):
            for key in ('lr', 'initial_lr'):
                if key in group:
                    group[key] *= ratio
        for scheduler in self.schedulers:
            if scheduler.param_name == 'lr':
                for values in (scheduler.base_values, scheduler._last_value):
                    values[:] = [v * ratio for v, ratio in zip(values, ratios, strict=True)]


def _rate(group: dict) -> float:
    return group.get('initial_lr', group['lr'])
