"""tools/support/launch.py: what torchrun is asked for, from GPUS and the usual variables."""

import os
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_command
from support import launch


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
