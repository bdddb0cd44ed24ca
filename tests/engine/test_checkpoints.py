"""A checkpoint is whole or not there, and the one before it stays until then."""

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from config_files import RECIPES
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from processes import run
from released_files import MINIS
from resume_run import KINDS, build, lines, train
from small_run import SmallModel, quick, small_config

from backbone.engine.checkpoints import WholeCheckpointHook, WholeFileBackend
from backbone.weights.checkpoint import CheckpointError
from backbone.weights.read import read_checkpoint

SMALLER_THAN_A_CHECKPOINT = 600_000


@contextmanager
def longest_file(size: int) -> Iterator[None]:
    """Inside, writing beyond ``size`` bytes of a file fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def whole_checkpoints(folder: Path) -> list[str]:
    """The names of the checkpoints; reads each completely."""
    for path in folder.glob('*.pth*'):
        read_checkpoint(str(path))
    return sorted(path.name for path in folder.glob('*.pth*'))


@pytest.mark.parametrize('kind', KINDS)
def test_killed_while_it_writes_the_next_it_goes_on_from_the_one_before(
    kind: str, tmp_path: Path
) -> None:
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    for folder in (whole, broken):
        folder.mkdir()
    ended = run(train, whole, kind)
    ended += run(train, broken, kind, 0, False, 4)
    (first,) = whole_checkpoints(broken)
    ended += run(train_with_short_files, broken, kind, signal.SIG_DFL)
    assert [process.status for process in ended] == [0, -signal.SIGKILL, -signal.SIGXFSZ], ended
    assert (broken / 'last_checkpoint').read_text() == str(broken / first)
    assert [path.name for path in broken.glob('*.pth')] == [first]
    ended = run(train, broken, kind, 0, True)
    assert ended[0].status == 0, ended
    assert lines(broken)[-3:] == lines(whole)[-3:]
    assert whole_checkpoints(broken) == whole_checkpoints(whole)  # and no part of one


def train_with_short_files(work_dir: Path, kind: str, at_limit: signal.Handlers) -> None:
    signal.signal(signal.SIGXFSZ, at_limit)
    runner = build(work_dir, kind, resume=True)
    with longest_file(SMALLER_THAN_A_CHECKPOINT):
        runner.train()


def test_on_a_full_disk_it_ends_in_a_line_and_the_last_checkpoint_stays(
    tmp_path: Path,
) -> None:
    run(train, tmp_path, 'iter', 0, False, 4)
    before = (tmp_path / 'iter_3.pth').read_bytes()
    (ended,) = run(train_with_short_files, tmp_path, 'iter', signal.SIG_IGN)
    assert ended.status == 1  # support/cli.py makes one line and a 2 of it
    assert ended.said.splitlines()[-1].endswith(
        f'CheckpointError: {tmp_path}/iter_6.pth: not written: File too large; the checkpoints '
        'before it are whole: put that right, then go on with --resume'
    )
    assert whole_checkpoints(tmp_path) == ['iter_3.pth']
    assert (tmp_path / 'iter_3.pth').read_bytes() == before
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_3.pth')


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ('failing', 'reason'),
    [
        (lambda patch, folder: patch.setattr(os, 'fsync', full), 'No space left on device'),
        (lambda patch, folder: patch.setattr(os, 'replace', full), 'No space left on device'),
        (lambda patch, folder: folder / 'a.pth', 'Not a directory'),
    ],
    ids=['fsync', 'rename', 'not a directory'],
)
def test_what_cannot_be_written_leaves_what_was_there(
    failing: Callable, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = WholeFileBackend()
    backend.put(b'old', tmp_path / 'a.pth')
    place = failing(monkeypatch, tmp_path) or tmp_path
    with pytest.raises(CheckpointError, match=f'a.pth: not written: {reason}'):
        backend.put(b'new', place / 'a.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']
    assert (tmp_path / 'a.pth').read_bytes() == b'old'


def test_a_folder_that_is_not_there_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ('a.pth', tmp_path / 'new/deeper/a.pth'):
        WholeFileBackend().put(b'whole', path)
        assert Path(path).read_bytes() == b'whole'


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, WholeCheckpointHook, object]:
    """After a training that keeps one checkpoint, and the best; each validation is a better one."""
    runner = build(tmp_path, 'iter', max_keep_ckpts=1, save_best='noise/nothing', rule='greater')
    runner.train()
    hook = next(hook for hook in runner.hooks if isinstance(hook, WholeCheckpointHook))
    return tmp_path, hook, runner


def test_what_is_superfluous_goes_only_when_the_new_one_is_there(
    trained: tuple[Path, WholeCheckpointHook, object],
) -> None:
    folder, hook, runner = trained
    there = ['best_noise_nothing_iter_6.pth', 'iter_6.pth']
    assert whole_checkpoints(folder) == there
    with longest_file(SMALLER_THAN_A_CHECKPOINT), pytest.raises(CheckpointError):
        hook._save_checkpoint_with_step(runner, 7, {})
    with longest_file(1000), pytest.raises(CheckpointError):
        hook.after_val_epoch(runner, {'noise/nothing': 100})
    assert whole_checkpoints(folder) == there
    assert (folder / 'last_checkpoint').read_text() == str(folder / 'iter_6.pth')


def test_the_same_best_checkpoint_may_be_written_twice(
    trained: tuple[Path, WholeCheckpointHook, object],
) -> None:
    folder, hook, runner = trained
    hook.after_val_epoch(runner, {'noise/nothing': 100})
    assert whole_checkpoints(folder) == ['best_noise_nothing_iter_6.pth', 'iter_6.pth']


def test_the_same_step_may_be_saved_twice(
    trained: tuple[Path, WholeCheckpointHook, object],
) -> None:
    folder, hook, runner = trained
    hook._save_checkpoint_with_step(runner, 6, {})
    assert whole_checkpoints(folder) == ['best_noise_nothing_iter_6.pth', 'iter_6.pth']
    # what a resumed run goes on from
    assert runner.message_hub.get_info('keep_ckpt_ids') == [6]
    assert runner.message_hub.get_info('last_ckpt') == str(folder / 'iter_6.pth')


@MODELS.register_module()
class Carrier(SmallModel):
    """Has a backbone of ours, which takes no part."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self.deep = MODELS.build(dict(type=network, arch=MINIS_BY_NAME[network]))


MINIS_BY_NAME = {network.__name__: arch for network, arch in MINIS.items()}


@pytest.mark.parametrize('network', MINIS_BY_NAME)
@pytest.mark.parametrize('hook', ['CheckpointHook', 'WholeCheckpointHook'])
def test_every_checkpoint_says_the_family_of_its_backbone(
    hook: str, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    cfg = small_config(tmp_path, epochs=1, model=dict(type='Carrier', network=network))
    cfg.merge_from_dict(
        dict(runner_type='RMTRunner', default_hooks=dict(checkpoint=dict(type=hook)))
    )
    Runner.from_cfg(cfg).train()
    assert read_checkpoint(tmp_path / 'epoch_1.pth')['meta']['rmt'] == {'family': network}


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_every_config_saves_this_way(path: Path) -> None:
    assert Config.fromfile(path).default_hooks.checkpoint.type == 'WholeCheckpointHook'
