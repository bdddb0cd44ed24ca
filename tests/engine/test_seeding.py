"""Each process draws its own numbers, and the same again for the same iteration or image."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import run
from resume_run import KINDS, build

from backbone.engine import seeding
from backbone.engine.seeding import SeedByIterationHook


def draws() -> tuple[float, ...]:
    return random.random(), np.random.rand(), torch.rand(1).item()


def drawn_in(iteration: int, rank: int, seed: int = 0) -> tuple[float, ...]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeding, 'get_rank', lambda: rank)
        SeedByIterationHook.reseed(SimpleNamespace(seed=seed), iteration)
    return draws()


def test_seed_rank_and_iteration_each_change_every_generator() -> None:
    one = drawn_in(3, 1, 5)
    assert drawn_in(3, 1, 5) == one
    for other in (drawn_in(4, 1, 5), drawn_in(3, 2, 5), drawn_in(3, 1, 6)):
        assert all(a != b for a, b in zip(one, other, strict=True))


def write_draws(folder, kind: str, workers: int) -> None:
    """Train, and write the noise in the images and a number drawn in each iteration."""
    runner = build(folder, kind, workers)
    rank, noise, computed = runner.rank, [], []
    step = runner.model.module.train_step

    def record(data, optim_wrapper):
        noise.extend((data['inputs'][:, 0, 0, 0] - data['target']).tolist())
        computed.append(torch.rand(1).item())
        return step(data, optim_wrapper)

    runner.model.train_step = record
    runner.train()
    np.savez(folder / f'{rank}.npz', noise=noise, computed=computed)


@pytest.mark.parametrize(('kind', 'workers'), [(KINDS[0], 2), (KINDS[1], 0)])
def test_two_processes_share_no_draw(kind: str, workers: int, tmp_path) -> None:
    ended = run(write_draws, tmp_path, kind, workers, processes=2)
    assert [process.status for process in ended] == [0, 0], ended
    first, second = (np.load(tmp_path / f'{rank}.npz') for rank in range(2))
    for key in ('noise', 'computed'):
        numbers = [*first[key], *second[key]]
        assert len(numbers) == 12 * (2 if key == 'noise' else 1)
        assert len(set(numbers)) == len(numbers)
