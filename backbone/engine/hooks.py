"""Hooks of every run: a seed that depends on the iteration alone, metrics written once."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class SeedByIterationHook(Hook):
    """Seeds Python, numpy and torch before each batch is loaded in this process and computed.

    A resumed run starts with fresh random states, so drop path, sampling of proposals and
    augmentation would go on differently. With the seed renewed at every iteration from (seed, rank,
    iteration) nothing needs to be stored, on any number of processes.

    A resumed run also gets back the order of the images when no seed is configured. Augmentation
    in dataloader workers has states of its own there and draws anew after resuming.
    """

    priority = 'LOWEST'  # after the checkpoint is saved

    def before_train(self, runner: Runner) -> None:
        # mmengine makes the samplers, with a seed of the day, before it reads the checkpoint's
        loader = runner.train_loop.dataloader
        for sampler in (loader.sampler, getattr(loader.batch_sampler, 'sampler', None)):
            if runner._resume and hasattr(sampler, 'seed'):
                sampler.seed = runner.seed

    def before_train_epoch(self, runner: Runner) -> None:
        loop = runner.train_loop
        # else making an iterator draws from the global state, which a resumed run does once more
        loop.dataloader.generator = torch.Generator().manual_seed(self.seed(runner, runner.iter))
        if hasattr(loop, 'dataloader_iterator'):  # iteration-based: may load batches to skip them
            loop.dataloader_iterator = _SeededIterator(
                loop.dataloader_iterator, lambda: self.reseed(runner, runner.iter)
            )
        self.reseed(runner, runner.iter)

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        self.reseed(runner, runner.iter + 1)

    def after_val(self, runner: Runner) -> None:
        self.reseed(runner, runner.iter)

    def reseed(self, runner: Runner, iteration: int) -> None:
        seed = self.seed(runner, iteration)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)  # every device

    @staticmethod
    def seed(runner: Runner, iteration: int) -> int:
        sequence = np.random.SeedSequence([runner.seed, get_rank(), iteration])
        return int(sequence.generate_state(1)[0])


class _SeededIterator:
    """An iterator of batches that seeds before each one."""

    def __init__(self, iterator: Iterator, reseed: Callable[[], None]) -> None:
        self._iterator = iterator
        self._reseed = reseed

    def __next__(self) -> Any:
        self._reseed()
        return next(self._iterator)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)


@HOOKS.register_module()
class MainProcessLoggerHook(LoggerHook):
    """mmengine's logger hook, but one process alone writes the metrics of a test.

    There every process writes the same file at the same time; the last bytes of a longer text then
    stay behind a shorter one (their timings differ), which is no JSON.
    """

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if is_main_process():
            super().after_test_epoch(runner, metrics)
