"""tools/support/launch.py: what torchrun is asked for, and how a run of several processes ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_command
from support import launch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('NNODES', 'NODE_RANK', 'MASTER_ADDR', 'PORT'):
        monkeypatch.delenv(name, raising=False)


def arguments(*rest: str) -> dict[str, str]:
    words = launch.torchrun_arguments('train.py', ['config.py'], list(rest))
    return dict(word.split('=', 1) for word in words if word.startswith('--') and '=' in word)


def test_gpus_default_to_all_visible_and_one_process_without() -> None:
    assert arguments()['--nproc_per_node'] == str(max(1, torch.cuda.device_count()))


@pytest.mark.parametrize(('gpus', 'expected'), [(8, '8'), (0, '1')])
def test_gpus_default_on_other_machines(
    gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    assert arguments('--amp')['--nproc_per_node'] == expected


def test_gpus_given_are_taken_and_options_passed_on() -> None:
    words = launch.torchrun_arguments('train.py', ['config.py'], ['3', '--resume', '--amp'])
    assert '--nproc_per_node=3' in words
    assert words[-5:] == ['train.py', 'config.py', '--launcher=pytorch', '--resume', '--amp']


def test_two_runs_on_a_machine_take_different_ports() -> None:
    assert arguments()['--master_port'] != arguments()['--master_port']


def test_several_machines_agree_on_what_the_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('NNODES', '4')
    monkeypatch.setenv('NODE_RANK', '2')
    monkeypatch.setenv('MASTER_ADDR', '10.0.0.1')
    found = arguments('8')
    assert found['--nnodes'] == '4'
    assert found['--node_rank'] == '2'
    assert found['--master_addr'] == '10.0.0.1'
    assert found['--master_port'] == '29500'
    monkeypatch.setenv('PORT', '1234')
    assert arguments('8')['--master_port'] == '1234'


def refused(capsys: pytest.CaptureFixture, *rest: str) -> str:
    """The line that is said where nothing is started."""
    with pytest.raises(SystemExit) as end:
        arguments(*rest)
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith('error: ')
    assert line.count('\n') == 1
    return line.removeprefix('error: ').rstrip()


def test_several_machines_need_a_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv('NNODES', '2')
    assert 'set MASTER_ADDR' in refused(capsys)


@pytest.mark.parametrize('gpus', ['0', '-1', '-8', '2.5', 'two', ''])
def test_a_number_of_processes_that_is_none_is_refused(
    gpus: str, capsys: pytest.CaptureFixture
) -> None:
    assert refused(capsys, gpus, '--amp') == f'GPUS={gpus}: must be a whole number of at least 1'


def test_no_more_processes_than_gpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert arguments('2')['--nproc_per_node'] == '2'
    assert refused(capsys, '3').startswith('GPUS=3: only 2 can be seen here')


@pytest.mark.parametrize(
    ('name', 'value', 'says'),
    [
        ('NNODES', '0', 'of at least 1'),
        ('NNODES', 'x', 'of at least 1'),
        ('NODE_RANK', '1', 'from 0 to 0'),
        ('PORT', '70000', 'from 1 to 65535'),
    ],
)
def test_variables_out_of_range_are_refused(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv(name, value)
    assert refused(capsys) == f'{name}={value}: must be a whole number {says}'


@pytest.mark.parametrize(
    ('script', 'given', 'usage'),
    [
        ('dist_train.sh', [], 'dist_train.sh CONFIG [GPUS] [options]'),
        ('dist_test.sh', ['config.py'], 'dist_test.sh CONFIG CHECKPOINT [GPUS] [options]'),
        ('slurm_train.sh', ['part'], 'slurm_train.sh PARTITION JOB_NAME CONFIG [options]'),
    ],
)
def test_too_few_arguments_give_the_usage(
    script: str, given: list[str], usage: str, tmp_path: Path
) -> None:
    done = run_command(ROOT / 'tools' / script, *given, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.strip() == f'usage: {usage}'


def test_slurm_asks_for_one_task_a_gpu(tmp_path: Path) -> None:
    """With a stand-in for srun, which prints what it is given."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\necho "$@"\n')
    srun.chmod(0o755)
    done = run_command(
        ROOT / 'tools/slurm_train.sh', 'part', 'job', 'config.py', '--amp',
        cwd=tmp_path, GPUS='16', PATH=f'{tmp_path}:{os.environ["PATH"]}',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert {'--ntasks=16', '--ntasks-per-node=8', '--gres=gpu:8', '--partition=part'} <= set(words)
    assert words[-3:] == ['config.py', '--launcher=slurm', '--amp']


# --- how a run ends -------------------------------------------------------------------------------


def failure(tmp_path: Path, exitcode: int, at: int, said: str | None = None) -> ProcessFailure:
    file = tmp_path / str(exitcode)
    if said:
        file.write_text(json.dumps(dict(message=said, timestamp=at)))
    made = ProcessFailure(local_rank=0, pid=1, exitcode=exitcode, error_file=str(file))
    made.timestamp = at
    return made


@pytest.mark.parametrize(
    ('ended', 'line', 'status'),
    [
        ({1: -9}, 'the process of rank 1 was killed by signal 9, SIGKILL (out of memory?); ', 137),
        ({0: 1, 1: -11}, 'the process of rank 1 was killed by signal 11, SIGSEGV; ', 139),
        ({0: 3, 1: -15, 2: 7}, 'the process of rank 2 ended with exit status 7, as it says abo', 7),
        ({0: -15, 1: 2}, 'no such config', 2),
        ({0: -15}, 'the process of rank 0 was killed by signal 15, SIGTERM; ', 143),
    ],
)
def test_the_line_names_the_process_that_began_it(
    ended: dict[int, int], line: str, status: int, tmp_path: Path
) -> None:
    failures = {
        rank: failure(tmp_path, code, rank, 'no such config' if code == 2 else None)
        for rank, code in ended.items()
    }
    found, exit_status = launch.why(failures)
    assert found.startswith(line)
    assert exit_status == status


CHILD = """
import os, signal, sys, time
os.write(1, f'{os.getpid()}\\n'.encode())  # in one piece
open(os.environ['RANK'], 'w').close()
if os.environ['RANK'] == '1' and sys.argv[1] == 'die':
    while not os.path.exists('0'):  # the other one has said its id
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(300)
"""


def start(tmp_path: Path, argument: str) -> tuple[subprocess.Popen, list[int]]:
    """The launcher with two processes that sleep, and their ids."""
    script = tmp_path / 'train.py'
    script.write_text(CHILD)
    command = [sys.executable, ROOT / 'tools/support/launch.py', script, argument, '2']
    pipe = subprocess.PIPE
    launched = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path)
    return launched, [int(launched.stdout.readline()) for _ in range(2)]


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_that_is_killed_ends_all_with_its_rank_and_signal(tmp_path: Path) -> None:
    launched, processes = start(tmp_path, 'die')
    _, said = launched.communicate(timeout=60)
    assert launched.returncode == 128 + signal.SIGKILL
    (line,) = said.splitlines()
    assert line.startswith('error: the process of rank 1 was killed by signal 9, SIGKILL')
    assert not any(map(lives, processes))


@pytest.mark.parametrize(
    ('sent', 'beginning'),
    [(signal.SIGINT, 'error: interrupted; '), (signal.SIGTERM, 'error: stopped by SIGTERM; ')],
)
def test_ctrl_c_ends_all_in_one_line(sent: signal.Signals, beginning: str, tmp_path: Path) -> None:
    launched, processes = start(tmp_path, 'sleep')
    launched.send_signal(sent)
    _, said = launched.communicate(timeout=60)
    assert launched.returncode == 128 + sent
    (line,) = said.splitlines()
    assert line == f'{beginning}training goes on from its last checkpoint with --resume'
    assert not any(map(lives, processes))


INTERRUPTED = """
import os, runpy, signal, sys
from torch.distributed.elastic.multiprocessing import api
begin = api.get_subprocess_handler
def begin_and_interrupt(**arguments):
    handler = begin(**arguments)
    os.kill(os.getpid(), getattr(signal, os.environ['SENT']))
    return handler
api.get_subprocess_handler = begin_and_interrupt
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='needs /proc, which Linux has')
@pytest.mark.parametrize('sent', ['SIGINT', 'SIGTERM'])
def test_ctrl_c_while_processes_start_leaves_none(sent: str, tmp_path: Path) -> None:
    """torchrun does not know of them yet; one that lives on would keep the pipe open."""
    script = tmp_path / 'train.py'
    script.write_text('import time; time.sleep(15); open("outlived", "w")')
    launcher = ROOT / 'tools/support/launch.py'
    done = run_command(
        sys.executable, '-c', INTERRUPTED, launcher, script, 'config.py', '2',
        cwd=tmp_path, SENT=sent,
    )  # fmt: skip
    assert done.returncode == 128 + signal.Signals[sent]
    assert done.stderr.startswith('error: ')
    assert done.stderr.count('\n') == 1
    assert not (tmp_path / 'outlived').exists()
