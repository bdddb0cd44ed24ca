"""An interrupted run that is resumed goes on as if nothing had happened, under the safe loader."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from resume_run import build

from backbone.weights.read import CheckpointError, read_checkpoint

SCRIPT = Path(__file__).with_name('resume_run.py')


def train_and_die(work_dir: Path, kind: str) -> None:
    """Train in another process, which is killed in the fifth iteration."""
    tests, root = SCRIPT.parents[1:3]
    path = os.pathsep.join((str(tests), str(root), os.environ.get('PYTHONPATH', '')))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(work_dir), kind],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': path},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def lines(work_dir: Path) -> list[str]:
    return (work_dir / 'losses.txt').read_text().splitlines()


@pytest.fixture(scope='module', params=['iter', 'epoch'])
def runs(request, tmp_path_factory):
    """Two work directories: six iterations in one go, and with a kill in the fifth."""
    whole, broken = (tmp_path_factory.mktemp(name) for name in ('whole', 'broken'))
    threads = torch.get_num_threads()
    build(whole, request.param).train()
    train_and_die(broken, request.param)
    assert len(lines(broken)) == 4
    build(broken, request.param, resume=True).train()
    torch.set_num_threads(threads)
    return whole, broken


def test_losses_rates_data_and_message_hub_go_on_unchanged(runs):
    whole, broken = map(lines, runs)
    assert len(whole) == 6
    assert broken[:4] == whole[:4]
    assert broken[4:] == whole[3:]  # the fourth, lost with the kill, is done again
    assert len({line.split()[1] for line in whole}) == 6


def test_without_a_configured_seed_the_checkpoints_is_taken(runs, tmp_path):
    first = min(runs[0].glob('*_[13].pth'))
    (tmp_path / first.name).write_bytes(first.read_bytes())
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / first.name))
    build(tmp_path, first.name.split('_')[0], resume=True, seed=None).train()
    assert lines(tmp_path) == lines(runs[0])[3:]


def test_the_final_checkpoints_are_equal(runs):
    last = [read_checkpoint((folder / 'last_checkpoint').read_text()) for folder in runs]
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
        (runs[0] / 'last_checkpoint').read_text(), weights_only=False
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
