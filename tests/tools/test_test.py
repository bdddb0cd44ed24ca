"""tools/test.py: metrics as JSON, predictions, pictures; detection and segmentation."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from conftest import DET_CONFIG, ROOT, SEG_CONFIG, load_tool, run_command
from support import outputs
from tiny_data import write_ade, write_coco


def metrics(work_dir: Path) -> dict:
    return json.loads(next(work_dir.glob('2*/2*.json')).read_text())


@pytest.fixture
def evaluated(
    tmp_path: Path, checkpoints: dict[str, Path], run_tool: Callable[..., int]
) -> Callable[[str, list[str]], tuple[dict, list[dict]]]:
    """Runs the tool with all its outputs (pictures in show/); returns metrics and predictions."""

    def evaluate(config: str, options: list[str]) -> tuple[dict, list[dict]]:
        out, work = tmp_path / 'out.pkl', tmp_path / 'work'
        arguments = ('--out', out, '--show-dir', tmp_path / 'show', '--work-dir', work)
        arguments += ('--cfg-options', *options)
        assert run_tool('test', config, checkpoints[config], *arguments) == 0
        return metrics(work), pickle.loads(out.read_bytes())

    return evaluate


def test_detection_writes_metrics_predictions_and_pictures(
    tmp_path: Path, tiny_coco: Path, tiny_det: list[str], evaluated: Callable
) -> None:
    found, predictions = evaluated(DET_CONFIG, tiny_det)
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= set(found)
    names = {path.name for path in (tiny_coco / 'val2017').iterdir()}
    assert {Path(p['img_path']).name for p in predictions} == names
    assert {'bboxes', 'scores', 'labels', 'masks'} <= set(predictions[0]['pred_instances'])
    assert {path.name for path in (tmp_path / 'show').iterdir()} == names


def test_segmentation_writes_metrics_predictions_and_pictures(
    tmp_path: Path, tiny_ade: Path, tiny_seg: list[str], evaluated: Callable
) -> None:
    found, predictions = evaluated(SEG_CONFIG, tiny_seg)
    assert {'mIoU', 'aAcc', 'mAcc'} <= set(found)
    images = sorted((tiny_ade / 'images/validation').iterdir())
    assert 'seg_logits' not in predictions[0]
    for image, prediction in zip(images, predictions, strict=True):
        height, width = cv2.imread(str(image)).shape[:2]
        assert prediction['pred_sem_seg']['data'].shape[-2:] == (height, width)
        picture = cv2.imread(str(tmp_path / 'show' / f'{image.stem}.png'))
        assert picture.shape[:2] == (height, 2 * width)  # the truth beside it


def test_two_processes_evaluate_every_image_once(
    tmp_path: Path, tiny_coco: Path, tiny_det: list[str], checkpoints: dict[str, Path]
) -> None:
    command = (ROOT / 'tools/dist_test.sh', DET_CONFIG, checkpoints[DET_CONFIG], 2)
    arguments = ('--out', 'out.pkl', '--work-dir', 'work', '--cfg-options', *tiny_det)
    done = run_command(*command, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'coco/bbox_mAP' in metrics(tmp_path / 'work')
    predictions = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert sorted(Path(p['img_path']).name for p in predictions) == sorted(
        path.name for path in (tiny_coco / 'val2017').iterdir()
    )


def in_two_folders(folder: Path, suffix: str) -> dict[str, str]:
    """Move the four images 1 to 4 so that two names stand for two each; returns old and new."""
    moved = {}
    for i, old in enumerate(sorted(folder.iterdir())):
        new = folder / 'ab'[i % 2] / f'{i // 2}{suffix}'
        new.parent.mkdir(exist_ok=True)
        shutil.move(old, new)
        moved[old.name] = str(new.relative_to(folder))
    return moved


def test_images_of_one_name_have_a_picture_each_in_detection(
    tmp_path: Path, tiny_det: list[str], evaluated: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_coco(tmp_path / 'coco')
    moved = in_two_folders(root / 'val2017', '.jpg')
    file = root / 'annotations/instances_val2017.json'
    content = json.loads(file.read_text())
    for image in content['images']:
        image['file_name'] = moved[image['file_name']]
    file.write_text(json.dumps(content))
    evaluated(DET_CONFIG, [*tiny_det, f'data_root={root}', 'test_dataloader.batch_size=2'])
    show = tmp_path / 'show'
    assert {str(p.relative_to(show)) for p in show.rglob('*.jpg')} == set(moved.values())
    (log,) = (tmp_path / 'work').glob('*/*.log')
    assert 'test_dataloader.batch_size=2: images of a batch are padded' in log.read_text()


def test_images_of_one_name_have_a_picture_each_in_segmentation(
    tmp_path: Path, tiny_seg: list[str], evaluated: Callable
) -> None:
    root = write_ade(tmp_path / 'ade')
    moved = in_two_folders(root / 'images/validation', '.jpg')
    in_two_folders(root / 'annotations/validation', '.png')
    evaluated(SEG_CONFIG, [*tiny_seg, f'data_root={root}'])
    show = tmp_path / 'show'
    pictures = {str(p.relative_to(show).with_suffix('.jpg')) for p in show.rglob('*.png')}
    assert pictures == set(moved.values())
    (log,) = (tmp_path / 'work').glob('*/*.log')
    assert 'padded' not in log.read_text()


@pytest.mark.parametrize('option', ['--out', '--show-dir'])
def test_a_place_that_cannot_be_written_is_said_before_anything_is_built(
    option: str, tmp_path: Path, tiny_det: list[str], checkpoints: dict[str, Path],
    run_tool: Callable[..., int], capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(load_tool('test'), 'build_runner', None)
    (tmp_path / 'file').write_text('')
    place = tmp_path / 'file/out.pkl'
    status = run_tool(
        'test', DET_CONFIG, checkpoints[DET_CONFIG], option, place, '--cfg-options', *tiny_det
    )
    assert status == 2
    assert capfd.readouterr().err.startswith(f'error: {option} {place}: ')


def test_a_full_disk_costs_the_files_alone(
    tmp_path: Path, tiny_seg: list[str], checkpoints: dict[str, Path],
    run_tool: Callable[..., int], capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(results: list, path: str) -> None:
        Path(path).write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(outputs, 'dump', full)
    out, show, work = tmp_path / 'out.pkl', tmp_path / 'show', tmp_path / 'work'
    out.write_bytes(b'old')
    (show / '00000002.png').mkdir(parents=True)  # where a picture belongs
    status = run_tool(
        'test', SEG_CONFIG, checkpoints[SEG_CONFIG], '--out', out, '--show-dir', show,
        '--work-dir', work, '--cfg-options', *tiny_seg,
    )  # fmt: skip
    assert status == 2
    assert 'mIoU' in metrics(work)
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith('error: ')
    assert f'--out {out}: No space left on device' in error
    assert f'--show-dir: {show}/00000002.png: Is a directory' in error
    assert out.read_bytes() == b'old'
    assert {path.name for path in tmp_path.iterdir()} >= {'out.pkl', 'show', 'work'}
    assert not list(tmp_path.glob('.out*'))


def test_predictions_may_go_into_a_folder_that_is_not_there_yet(
    tmp_path: Path, tiny_seg: list[str], checkpoints: dict[str, Path], run_tool: Callable[..., int]
) -> None:
    out = tmp_path / 'new/folder/out.pkl'
    arguments = ('--out', out, '--work-dir', tmp_path, '--cfg-options', *tiny_seg)
    assert run_tool('test', SEG_CONFIG, checkpoints[SEG_CONFIG], *arguments) == 0
    assert len(pickle.loads(out.read_bytes())) == 4


def test_predictions_need_a_pickles_name(
    tmp_path: Path, tiny_det: list[str], checkpoints: dict[str, Path],
    run_tool: Callable[..., int], capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    status = run_tool(
        'test', DET_CONFIG, checkpoints[DET_CONFIG], '--out', tmp_path / 'out.json',
        '--cfg-options', *tiny_det,
    )  # fmt: skip
    assert status == 2
    assert 'give a file that ends in .pkl' in capfd.readouterr().err


def test_checkpoint_of_another_model_is_refused_in_one_line(
    tmp_path: Path, tiny_det: list[str], checkpoints: dict[str, Path],
    run_tool: Callable[..., int], capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    status = run_tool(
        'test', DET_CONFIG, checkpoints[SEG_CONFIG], '--work-dir', tmp_path,
        '--cfg-options', *tiny_det,
    )  # fmt: skip
    assert status == 2
    errors = [x for x in capfd.readouterr().err.splitlines() if x.startswith('error: ')]
    assert len(errors) == 1
    assert str(checkpoints[SEG_CONFIG]) in errors[0]
