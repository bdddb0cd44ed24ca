"""An interrupted run that is resumed goes on as if nothing had happened, under the safe loader."""

import signal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from processes import run
from resume_run import KINDS, build, lines, train

from backbone.weights.checkpoint import CheckpointError
from backbone.weights.read import read_checkpoint

SMOOTHED = 3
"""Which field of a line of :class:`resume_run.Record` is the log's smoothed loss."""


class Runs(NamedTuple):
    """Work directories of six iterations in one go, and with a kill in the fifth."""

    kind: str
    workers: int
    whole: Path
    broken: Path


@pytest.fixture(
    scope='module',
    params=[(kind, workers) for kind in KINDS for workers in (0, 2)],
    ids=lambda param: '{}-{} workers'.format(*param),
)
def runs(request, tmp_path_factory):
    kind, workers = request.param
    whole, broken = (tmp_path_factory.mktemp(name) for name in ('whole', 'broken'))
    ended = run(train, whole, kind, workers)
    ended += run(train, broken, kind, workers, False, 4)
    assert [process.status for process in ended] == [0, -signal.SIGKILL], ended
    assert len(lines(broken)) == 4
    (ended,) = run(train, broken, kind, workers, True)
    assert ended.status == 0, ended.said
    return Runs(kind, workers, whole, broken)


def test_losses_rates_data_and_message_hub_go_on_unchanged(runs):
    whole, broken = lines(runs.whole), lines(runs.broken)
    assert len(whole) == 6
    assert broken[:4] == whole[:4]
    assert broken[4:] == whole[3:]  # the fourth, lost with the kill, is done again
    assert len({line.split()[1] for line in whole}) == 6


def test_without_a_configured_seed_the_checkpoints_is_taken(runs, tmp_path):
    first = min(runs.whole.glob('*_[13].pth'))
    (tmp_path / first.name).write_bytes(first.read_bytes())
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / first.name))
    (ended,) = run(train, tmp_path, runs.kind, runs.workers, True, -1, None)
    assert ended.status == 0, ended.said
    assert lines(tmp_path) == lines(runs.whole)[3:]


def test_the_final_checkpoints_are_equal(runs):
    folders = runs.whole, runs.broken
    last = [read_checkpoint((folder / 'last_checkpoint').read_text()) for folder in folders]
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_equal(*(checkpoint[key] for checkpoint in last))
    loss = [checkpoint['message_hub']['log_scalars']['train/loss'] for checkpoint in last]
    assert_equal(*(buffer.data for buffer in loss))
    assert len(loss[0].data[0]) == 6
    MessageHub('test_resume').load_state_dict(last[1]['message_hub'])
    assert last[1]['meta']['iter'] == 6


def assert_equal(one, other):
    """Nested data with tensors and arrays, to the last bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, (torch.Tensor, np.ndarray)):
        assert (torch.as_tensor(one) == torch.as_tensor(other)).all()
    else:
        assert one == other


def test_a_checkpoint_with_code_is_not_resumed(runs, tmp_path):
    checkpoint = torch.load(
        (runs.whole / 'last_checkpoint').read_text(), weights_only=False
    )  # our own, just made
    marker = tmp_path / 'it-ran'

    class Code:
        def __reduce__(self):
            return eval, (f'open({str(marker)!r}, "w").close()',)

    checkpoint['message_hub']['runtime_info']['x'] = Code()
    path = tmp_path / 'evil.pth'
    torch.save(checkpoint, path)
    runner = build(tmp_path, 'iter')
    with pytest.raises(CheckpointError, match='asks for eval'):
        runner.resume(str(path))
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('kind', KINDS)
def test_killed_at_random_again_and_again_it_ends_as_in_one_go(kind, workers, processes, tmp_path):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    for folder in (whole, broken):
        folder.mkdir()
    ended = run(train, whole, kind, workers, processes=processes)
    assert {process.status for process in ended} == {0}, ended
    rng = np.random.default_rng(KINDS.index(kind) * 4 + workers + processes)
    for attempt, die_at in enumerate(sorted(rng.integers(0, 6, 3))):
        ended = run(train, broken, kind, workers, attempt > 0, die_at, processes=processes)
        assert ended[-1].status == -signal.SIGKILL, ended
        assert all(process.status for process in ended)  # nobody goes on alone
    ended = run(train, broken, kind, workers, True, processes=processes)
    assert {process.status for process in ended} == {0}, ended
    for rank in range(processes):
        # a checkpoint holds the smoothed losses of the first process, which alone logs them
        kept = [i for i in range(5 + 1) if rank == 0 or i != SMOOTHED]
        expected, found = (
            [[line.split()[i] for i in kept] for line in lines(folder, rank)]
            for folder in (whole, broken)
        )
        by_iteration = {fields[0]: fields for fields in expected}
        assert len(by_iteration) == 6
        assert [by_iteration[fields[0]] for fields in found] == found
        assert {fields[0] for fields in found} == set(by_iteration)
