"""tools/train.py: it trains, evaluates, resumes, says what it does; detection and segmentation."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import DET_CONFIG, ROOT, SEG_CONFIG, call_tool, load_tool, run_command

NO_OPTIMIZER = 'default_hooks.checkpoint.save_optimizer=False'  # not to write 400 MB


def logged(work_dir: Path) -> str:
    """What the newest run in ``work_dir`` logged."""
    return max(work_dir.glob('*/*.log')).read_text()


def steps(work_dir: Path) -> list[str]:
    """The training steps of the newest run, as its log names them: ``[epoch][n/N]``, ``[n/N]``."""
    return re.findall(r'(?:Epoch|Iter)\(train\) +(\S+) +', logged(work_dir))


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_det: list[str]) -> Path:
    """A work directory after one epoch, started by a user from some other directory."""
    cwd = tmp_path_factory.mktemp('elsewhere')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        assert call_tool('train', DET_CONFIG, '--cfg-options', *tiny_det) == 0
    return cwd / 'work_dirs' / Path(DET_CONFIG).stem


def test_trains_and_evaluates_from_any_directory(trained: Path) -> None:
    assert (trained / 'epoch_1.pth').is_file()
    assert 'coco/bbox_mAP' in logged(trained)
    assert 'coco/segm_mAP' in logged(trained)


def test_log_says_the_learning_rate_from_what_to_what(trained: Path) -> None:
    assert 'Learning rate: 0.0001 at 16 images a step -> 1.25e-05 at 2.' in logged(trained)


@pytest.mark.skipif(torch.cuda.is_available(), reason='about machines without a GPU')
def test_float16_config_trains_in_float32_without_a_gpu(trained: Path) -> None:
    assert 'No GPU: training in float32 instead of float16.' in logged(trained)


def test_resumes_at_the_right_epoch(
    trained: Path, tiny_det: list[str], run_tool: Callable[..., int]
) -> None:
    options = [*tiny_det, 'train_cfg.max_epochs=2']
    arguments = ('--work-dir', trained, '--resume', '--cfg-options', *options)
    assert run_tool('train', DET_CONFIG, *arguments) == 0
    assert 'resumed epoch: 1, iter: 2' in logged(trained)
    assert steps(trained) == ['[2][1/2]', '[2][2/2]']


@pytest.mark.parametrize('saved', [False, True])
def test_interrupted_training_says_how_to_go_on_where_it_can(
    saved: bool, tmp_path: Path, run_tool: Callable[..., int], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    class Stopped:
        def train(self) -> None:
            if saved:
                (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
            raise KeyboardInterrupt

    tool = load_tool('train')
    monkeypatch.setattr(tool, 'build_runner', lambda cfg: Stopped())
    monkeypatch.setattr(tool.checks, 'check_data', lambda *_: None)
    monkeypatch.setattr(tool.checks, 'build_loops', lambda *_: None)
    assert run_tool('train', DET_CONFIG, '--work-dir', tmp_path) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith('error: interrupted')
    assert ('--resume' in line) == saved


def test_segmentation_trains_and_evaluates_with_the_same_tool(
    tmp_path: Path, tiny_seg: list[str], run_tool: Callable[..., int]
) -> None:
    arguments = ('--work-dir', tmp_path, '--amp', '--cfg-options', *tiny_seg)
    assert run_tool('train', SEG_CONFIG, *arguments) == 0
    assert steps(tmp_path) == ['[1/2]', '[2/2]']
    assert 'mIoU' in logged(tmp_path)


def test_two_processes_train_and_evaluate(tmp_path: Path, tiny_det: list[str]) -> None:
    command = (ROOT / 'tools/dist_train.sh', DET_CONFIG, 2, '--work-dir', tmp_path)
    done = run_command(*command, '--cfg-options', *tiny_det, NO_OPTIMIZER, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = logged(tmp_path)
    assert 'at 16 images a step -> 2.5e-05 at 4.' in text
    assert 'coco/bbox_mAP' in text
    if not torch.cuda.is_available():
        assert 'SyncBN becomes BN' in text


def test_mmdets_own_tool_trains_our_config_elsewhere(tmp_path: Path, tiny_det: list[str]) -> None:
    import mmdet

    tool = Path(mmdet.__file__).parent / '.mim/tools/train.py'
    command = (sys.executable, tool, ROOT / DET_CONFIG, '--work-dir', tmp_path)
    done = run_command(*command, '--cfg-options', *tiny_det, NO_OPTIMIZER, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'epoch_1.pth').is_file()
