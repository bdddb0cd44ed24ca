"""Processes for tests in which some are killed: forked from one that has imported once for all."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

_CONTEXT = multiprocessing.get_context('forkserver')
# the last three are what building a runner imports; together they take most of a small run's time
_CONTEXT.set_forkserver_preload(
    ['backbone.engine', 'torch._dynamo', 'matplotlib.pyplot', 'setuptools']
)


class Ended(NamedTuple):
    status: int
    """0, or the exit status; the negative number of the signal that killed it."""
    said: str
    """What it wrote to stderr."""


def run(target: Callable[..., object], *args: object, processes: int = 1) -> list[Ended]:
    """Call a function of some module in new processes, without GPUs and with one thread each.

    More than one find each other as torch.distributed's, by the usual variables.
    """
    variables = {'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    if processes > 1:
        variables |= {'WORLD_SIZE': str(processes), 'MASTER_ADDR': '127.0.0.1'}
        variables['MASTER_PORT'] = str(_free_port())
    with TemporaryDirectory() as folder:
        said = [Path(folder, str(rank)) for rank in range(processes)]
        started = []
        for rank in range(processes):
            own = {'RANK': str(rank), 'LOCAL_RANK': str(rank)} if processes > 1 else {}
            arguments = (target, args, variables | own, said[rank])
            started.append(_CONTEXT.Process(target=_main, args=arguments))
            started[-1].start()
        deadline = time.monotonic() + 300
        for process in started:
            process.join(max(0, deadline - time.monotonic()))
        late = [process for process in started if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        texts = [path.read_text() if path.exists() else '' for path in said]
        assert not late, texts
        return [Ended(p.exitcode, text) for p, text in zip(started, texts, strict=True)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('', 0))
        return probe.getsockname()[1]


def _main(target: Callable[..., object], args: tuple, variables: dict, said: Path) -> None:
    os.environ.update(variables)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    torch.set_num_threads(1)  # as forked processes must, and so that sums are equal to the last bit
    target(*args)
