"""A resumed run goes on as if it had not stopped: every draw depends on its number alone."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader, get_worker_info


def seed_all(*entropy: int) -> None:
    """Seed Python, numpy and torch, on every device, from some numbers."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@HOOKS.register_module()
class SeedByIterationHook(Hook):
    """Seeds each iteration, and each image that a dataloader's worker loads, by its number.

    A resumed run starts with fresh random states, so drop path, sampling of proposals and
    augmentation would go on differently. With the seed renewed at every iteration from (seed, rank,
    iteration), and in the workers at every image from (seed, rank, number of the image in the run),
    nothing needs to be stored, on any number of processes.

    A resumed run also gets back the order of the images when no seed is configured.
    """

    priority = 'LOWEST'  # after the checkpoint is saved

    def before_train(self, runner: Runner) -> None:
        # mmengine makes the samplers, with a seed of the day, before it reads the checkpoint's
        loop = runner.train_loop
        iterator = getattr(loop, 'dataloader_iterator', None)  # where the loop is iteration-based
        begun = isinstance(iterator, _InfiniteDataloaderIterator) and iterator._iterator is not None
        if begun and loop.dataloader.num_workers and isinstance(runner._train_dataloader, dict):
            # mmengine 0.10.7 has let the workers load already, in that order
            loop.dataloader = _same_loader_anew(runner)
        loader = loop.dataloader
        for sampler in (loader.sampler, getattr(loader.batch_sampler, 'sampler', None)):
            if runner._resume and hasattr(sampler, 'seed'):
                sampler.seed = runner.seed
        self._numbers = _number_the_images(loader, runner.seed) if loader.num_workers else None
        if begun:
            loop.dataloader_iterator = type(iterator)(loader)

    def before_train_epoch(self, runner: Runner) -> None:
        loop = runner.train_loop
        # else making an iterator draws from the global state, which a resumed run does once more
        loop.dataloader.generator = torch.Generator().manual_seed(runner.seed + runner.iter)
        if hasattr(loop, 'dataloader_iterator'):  # iteration-based: may load batches to skip them
            loop.dataloader_iterator = _SeededIterator(
                loop.dataloader_iterator, lambda: self.reseed(runner, runner.iter), self._numbers
            )
        elif self._numbers:
            self._numbers.drawn = runner.iter * self._numbers.batch_size
        self.reseed(runner, runner.iter)

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        self.reseed(runner, runner.iter + 1)

    def after_val(self, runner: Runner) -> None:
        self.reseed(runner, runner.iter)

    @staticmethod
    def reseed(runner: Runner, iteration: int) -> None:
        seed_all(runner.seed, get_rank(), iteration)


class _SeededIterator:
    """mmengine's endless iterator of batches; seeds before each, and skips numbers with batches."""

    def __init__(
        self, iterator: Iterator, reseed: Callable[[], None], numbers: '_NumberedSampler | None'
    ) -> None:
        self._iterator = iterator
        self._reseed = reseed
        self._numbers = numbers

    def __next__(self) -> Any:
        self._reseed()
        return next(self._iterator)

    def skip_iter(self, iterations: int) -> None:
        before = self._numbers and self._numbers.drawn
        self._iterator.skip_iter(iterations)
        # what was skipped in the sampler itself has not come by
        if self._numbers and self._numbers.drawn == before:
            self._numbers.drawn += iterations * self._numbers.batch_size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)


# --- in dataloader workers ----------------------------------------------------------------------


class _Numbered(int):
    """The index of an image, and the numbers that seed its loading."""

    entropy: tuple[int, ...]

    def __new__(cls, index: int, entropy: tuple[int, ...]) -> '_Numbered':
        self = super().__new__(cls, index)
        self.entropy = entropy
        return self

    def __reduce__(self) -> tuple:
        return _Numbered, (int(self), self.entropy)


class _NumberedSampler:
    """A sampler whose indices know which of the run they are."""

    def __init__(self, sampler: Any, seed: int, batch_size: int) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drawn = 0
        self._entropy = (seed, get_rank())

    def __iter__(self) -> Iterator[Any]:
        for index in self.sampler:
            # the 1 tells these seeds from those of the iterations
            entropy = (*self._entropy, self.drawn, 1)
            self.drawn += 1
            yield _Numbered(index, entropy) if isinstance(index, int) else index

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)


def _number_the_images(loader: DataLoader, seed: int) -> _NumberedSampler | None:
    """Let the workers of ``loader`` seed every image by its number; None without a sampler."""
    batches = loader.batch_sampler
    if not (hasattr(batches, 'sampler') and hasattr(batches, 'batch_size')):
        return None
    sampler = batches.sampler
    if isinstance(sampler, _NumberedSampler):  # trained before
        sampler = sampler.sampler
    else:
        loader.worker_init_fn = partial(_seed_by_number, loader.worker_init_fn)
    batches.sampler = _NumberedSampler(sampler, seed, batches.batch_size)
    return batches.sampler


def _seed_by_number(init: Callable[[int], None] | None, worker: int) -> None:
    """Make the dataset of this worker seed before it loads what is numbered."""
    if init is not None:
        init(worker)
    dataset = get_worker_info().dataset
    kind = type(dataset)

    def load(self: Any, index: int) -> Any:
        if isinstance(index, _Numbered):
            seed_all(*index.entropy)
        return kind.__getitem__(self, index)

    # this process's own copy; as a subclass, so that it still is what others look for
    dataset.__class__ = type(kind.__name__, (kind,), {'__getitem__': load})


def _same_loader_anew(runner: Runner) -> DataLoader:
    """The training's dataloader over the same data, at its beginning and with the run's seed."""
    loop: BaseLoop = runner.train_loop
    return runner.build_dataloader(
        {**runner._train_dataloader, 'dataset': loop.dataloader.dataset},
        seed=runner.seed,
        diff_rank_seed=runner._randomness_cfg.get('diff_rank_seed', False),
    )
