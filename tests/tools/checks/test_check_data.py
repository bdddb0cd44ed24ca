"""Checks as the tools run them: before anything is built, unless they are told not to."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import DET_CONFIG, SEG_CONFIG
from mmengine.config import Config
from own_data import OwnData
from support import checks
from support.checks import samples

from backbone.engine import apply_keys


def arguments(data: OwnData, tmp_path: Path, *more: str) -> list[object]:
    options = [*data.options, f'data_root={data.root}', 'train_dataloader.num_workers=1']
    return [data.config, '--work-dir', tmp_path / 'work', *more, '--cfg-options', *options]


@pytest.mark.parametrize('config', [DET_CONFIG, SEG_CONFIG])
def test_real_data_pass(config: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue('coco_root' if config == DET_CONFIG else 'ade_root')
    cfg = Config.fromfile(Path(__file__).parents[3] / config)
    cfg.data_root = str(root)
    checks.check_data(apply_keys(cfg), ('train', 'val', 'test'))


def test_missing_data_set_names_the_key_to_change(own_coco: OwnData) -> None:
    line = own_coco.refusal('data_root=/absent/coco')
    assert '/absent/coco/annotations/instances_train2017.json: no such file' in line
    assert '--cfg-options data_root=DIR' in line


def test_missing_image_folder(own_coco: OwnData) -> None:
    own_coco.image(1).parent.rename(own_coco.root / 'elsewhere')
    assert 'train2017' in own_coco.refusal()


@pytest.mark.parametrize('backend', ['petrel', 'local'])
def test_data_of_another_backend_are_not_looked_for(backend: str, own_coco: OwnData) -> None:
    own_coco.root = Path('/absent')
    cfg = own_coco.cfg()
    cfg.train_dataloader.dataset.backend_args = dict(backend=backend)
    if backend == 'petrel':
        checks.check_data(cfg, ('train',))
    else:
        with pytest.raises(checks.UserError, match='no such file'):
            checks.check_data(cfg, ('train',))


def test_only_one_process_of_a_machine_looks(
    own_coco: OwnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_coco.image(1).unlink()
    monkeypatch.setenv('LOCAL_RANK', '1')
    own_coco.check()


def test_no_annotations_end_training_before_it_starts(
    own_coco: OwnData, tmp_path: Path, run_tool: Callable[..., int], capfd: pytest.CaptureFixture
) -> None:
    own_coco.edit(lambda content: content['annotations'].clear())
    assert run_tool('train', *arguments(own_coco, tmp_path)) == 2
    assert 'has no annotations to train on' in capfd.readouterr().err


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_no_check_skips_the_checks(
    tool: str, own_coco: OwnData, tmp_path: Path, checkpoints: dict[str, Path],
    run_tool: Callable[..., int], capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """What is refused then is what mmdet refuses, in a line as well."""
    for split in ('train', 'val'):
        own_coco.edit(lambda content: content['annotations'][0].pop('id'), split)
    command = arguments(own_coco, tmp_path, '--no-check')
    if tool == 'test':
        command.insert(1, checkpoints[DET_CONFIG])
    assert run_tool(tool, *command) == 2
    error = capfd.readouterr().err
    assert 'can not be built: KeyError: id (RMT_TRACEBACK=1 shows where)' in error
    assert 'Traceback' not in error


@pytest.fixture
def _only_the_first_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a set that is too large to be read whole."""
    monkeypatch.setattr(samples, 'READ_WHOLE', 0)
    monkeypatch.setattr(samples, 'READ_OF_LARGER', 1)


@pytest.mark.usefixtures('_only_the_first_is_read')
def test_image_that_breaks_in_a_worker_is_named(
    own_coco: OwnData, tmp_path: Path, run_tool: Callable[..., int], capfd: pytest.CaptureFixture
) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    own_coco.image(2).write_bytes(cv2.imencode('.jpg', pixels)[1].tobytes()[:40])
    assert run_tool('train', *arguments(own_coco, tmp_path)) == 2
    errors = capfd.readouterr().err
    assert f'error: {own_coco.image(2)}: no image that can be decoded' in errors
    assert 'Traceback' not in errors


@pytest.mark.usefixtures('_only_the_first_is_read')
def test_label_map_that_breaks_on_the_way_is_named(
    own_ade: OwnData, tmp_path: Path, run_tool: Callable[..., int], capfd: pytest.CaptureFixture
) -> None:
    broken = own_ade.root / 'annotations/training/00000002.png'
    broken.write_bytes(broken.read_bytes()[:30])
    assert run_tool('train', *arguments(own_ade, tmp_path)) == 2
    assert f'{broken}: no label map that can be decoded' in capfd.readouterr().err
