"""tools/test.py: metrics as JSON, predictions, pictures; detection and segmentation."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from conftest import DET_CONFIG, ROOT, SEG_CONFIG, run_command


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
