"""Mistakes end in one line on stderr, exit status 2, no traceback, and before anything is built."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest
import torch
from conftest import DET_CONFIG, ROOT, TOOLS, run_command
from mmcv.ops import RoIAlign, nms
from support import cli, launch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.utils.data import DataLoader, Dataset

from backbone.engine.watch import InvalidLossError


@pytest.fixture
def fails(
    run_tool: Callable[..., int], capfd: pytest.CaptureFixture, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., str]:  # fmt: skip
    """Run a tool that must refuse; returns its line."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> str:
        assert run_tool(name, *arguments) == 2
        errors = capfd.readouterr().err
        assert 'Traceback' not in errors
        lines = [line for line in errors.splitlines() if line.startswith('error: ')]
        assert len(lines) == 1, errors
        assert not list(tmp_path.rglob('*.pth'))
        return lines[0].removeprefix('error: ')

    return run


def test_wrong_config_path_names_the_nearest(fails: Callable[..., str]) -> None:
    line = fails('train', 'configs/mask_rcnn_rmt_t_1x_coco.py')
    assert line.startswith('configs/mask_rcnn_rmt_t_1x_coco.py: no such config file')
    assert DET_CONFIG in line


def test_config_that_does_not_load_says_why(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / 'broken.py').write_text("_base_ = 'absent.py'\n")
    assert 'absent.py' in fails('train', 'broken.py')


@pytest.mark.parametrize(
    ('option', 'expected'),
    [
        ('modle.backbone.arch=small', 'did you mean model?'),
        ('train_dataloader.batch_size=0', 'train_dataloader.batch_size=0: must be'),
        ('train_dataloader.batch_size=many', 'must be a whole number of at least 1'),
        ('train_cfg.max_epochs=-3', 'train_cfg.max_epochs=-3: must be'),
        ('train_dataloader.dataset.pipeline.9.prob=1', 'train_dataloader.dataset.pipeline.9'),
        ('model.backbone.arch=huge', 'choose from tiny, small, base, large'),
        ('model.backbone.depth=3', 'depth'),
        ('model.backbone.drop_path_rate=1.5', 'drop_path_rate'),
        ('model.type=MaskRNN', 'MaskRNN'),
        ('load_from=absent.pth', 'checkpoint absent.pth: no such file'),
        ('pretrained=absent.pth', 'checkpoint absent.pth: no such file'),
    ],
)
def test_options_out_of_range(
    option: str, expected: str, fails: Callable[..., str], tiny_det: list[str]
) -> None:
    assert expected in fails('train', DET_CONFIG, '--cfg-options', *tiny_det, option)


def test_resume_from_a_file_that_is_not_there(
    fails: Callable[..., str], tiny_det: list[str]
) -> None:
    line = fails('train', DET_CONFIG, '--resume', 'absent.pth', '--cfg-options', *tiny_det)
    assert line.startswith('checkpoint absent.pth: no such file')


def test_checkpoint_that_is_a_directory(fails: Callable[..., str], tiny_det: list[str]) -> None:
    line = fails('test', DET_CONFIG, '.', '--cfg-options', *tiny_det)
    assert line.startswith('checkpoint .: is a directory')


@pytest.mark.parametrize(
    'variable',
    ['LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK', 'MPI_LOCALRANKID'],
)
@pytest.mark.parametrize('rank', ['0', '1'])
def test_only_one_process_of_a_machine_speaks(
    rank: str, variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    monkeypatch.setenv(variable, rank)
    with pytest.raises(SystemExit):
        cli.fail('wrong')
    assert capsys.readouterr().err == ('error: wrong\n' if rank == '0' else '')


@pytest.mark.parametrize(
    ('stop', 'line'),
    [
        (KeyboardInterrupt(), 'error: interrupted\n'),
        (KeyboardInterrupt('go on with --resume'), 'error: interrupted; go on with --resume\n'),
    ],
)
def test_interrupted_is_said_and_how_to_go_on_where_one_can(
    stop: KeyboardInterrupt, line: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    def main() -> None:
        raise stop

    monkeypatch.delenv('LOCAL_RANK', raising=False)
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == 130
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    'text',
    [
        'failed to load image: /data/7.jpg',
        'Caught AssertionError in DataLoader worker process 1.\nOriginal Traceback (most recent '
        'call last):\n  File "x.py", line 3\nAssertionError: failed to load image: /data/7.jpg\n',
        "[Errno 2] No such file or directory: '/data/7.jpg'",
    ],
)
def test_unreadable_image_is_named_out_of_a_worker_too(
    text: str, capsys: pytest.CaptureFixture
) -> None:
    def main() -> None:
        raise AssertionError(text)

    with pytest.raises(SystemExit):
        cli.run(main)
    assert capsys.readouterr().err.startswith('error: /data/7.jpg: no ')


@contextmanager
def unread_stdout() -> Iterator[None]:
    """As in `command | head` once head has what it wants."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, 'w') as stdout, redirect_stdout(stdout):
        yield


def log_a_line() -> None:
    logger = logging.Logger('of the test')
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.warning('a line')
    raise AssertionError('went on')


@pytest.mark.parametrize('main', [lambda: print('a line'), log_a_line], ids=['print', 'log'])
def test_a_tool_whose_output_nobody_reads_ends_without_a_word(
    main: Callable[[], None], capfd: pytest.CaptureFixture
) -> None:
    with unread_stdout(), pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == 141
    assert capfd.readouterr().err == ''


def test_another_pipe_that_breaks_is_not_taken_for_stdout(capsys: pytest.CaptureFixture) -> None:
    def main() -> None:
        raise BrokenPipeError(32, 'Broken pipe')

    with capsys.disabled(), pytest.raises(BrokenPipeError):
        cli.run(main)


def align_in_half() -> None:
    RoIAlign(2, 1.0, 0)(torch.ones(1, 1, 4, 4).bfloat16(), torch.tensor([[0.0, 0, 0, 3, 3]]))


def suppress_in_half() -> None:
    nms(torch.ones(1, 4).bfloat16(), torch.ones(1).bfloat16(), 0.5)


@pytest.mark.parametrize('main', [align_in_half, suppress_in_half])
def test_a_detector_in_bfloat16_on_a_cpu_ends_in_one_line(
    main: Callable[[], None], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert 'leave 16 bits out (test_cfg.fp16, autocast), take a GPU, or --bf16' in error


def test_errors_of_ours_keep_their_traceback() -> None:
    def main() -> None:
        raise RuntimeError('a bug')

    with pytest.raises(RuntimeError, match='a bug'):
        cli.run(main)


def test_distributed_run_that_fails_says_it_in_one_line(tmp_path: Path) -> None:
    done = run_command(ROOT / 'tools/dist_train.sh', 'absent.py', 2, cwd=tmp_path)
    assert done.returncode == 2
    assert 'Traceback' not in done.stderr
    assert done.stderr.count('absent.py: no such config file') == 1


GROUP = """
import atexit, sys, threading, time
import torch
from support import cli

class Thread:
    def __del__(self):
        print('taken apart')

def main():
    if sys.argv[1] == 'group':
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    atexit.register(print, 'closed')
    threading.Thread(target=lambda: (time.sleep(0.5), open('written', 'w').close())).start()
    print('done')

thread = Thread()
cli.run(main)
"""


@pytest.mark.parametrize(('kind', 'last'), [('group', 'closed'), ('alone', 'taken apart')])
def test_a_process_of_a_group_ends_before_the_interpreter_takes_it_apart(
    kind: str, last: str, tmp_path: Path
) -> None:
    """Else a thread of the group may abort it, when all its results are written."""
    done = run_command(sys.executable, '-c', GROUP, kind, cwd=tmp_path, PYTHONPATH=str(TOOLS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split('\n')[:2] == ['done', 'closed']
    assert done.stdout.strip().endswith(last)
    assert (tmp_path / 'written').is_file(), 'a thread that was at work has ended it'


def test_under_the_launcher_every_process_leaves_its_line_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv('LOCAL_RANK', '1')
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(tmp_path / 'error'))
    monkeypatch.setenv('RMT_LAUNCHED', '1')
    with pytest.raises(SystemExit):
        cli.fail('wrong', every_process=True)
    assert capsys.readouterr().err == ''
    failure = ProcessFailure(1, 1, 2, str(tmp_path / 'error'))
    assert launch.why({1: failure}) == ('wrong', 2)


def ends(error: BaseException) -> int:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        cli.run(main)
    return end.value.code


def test_a_loss_that_is_nan_ends_in_a_line(capsys: pytest.CaptureFixture) -> None:
    assert ends(InvalidLossError('The loss is NaN')) == 2
    assert capsys.readouterr().err == 'error: The loss is NaN\n'


class Deadly(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_dataloaders_worker_that_is_killed_gives_a_line(capsys: pytest.CaptureFixture) -> None:
    def main() -> None:
        list(DataLoader(Deadly(), batch_size=1, num_workers=1))

    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == 2
    line = 'error: a dataloader worker was killed by signal 9, Killed (out of memory?): '
    assert capsys.readouterr().err.startswith(line)


def test_a_process_that_lost_another_leaves_the_reason_to_that_one() -> None:
    lost = RuntimeError('[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]')
    assert ends(lost) == cli.LOST_PEER == launch.LOST_PEER
