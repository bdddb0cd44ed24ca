"""tools/image_demo.py from arguments to files, with a detector that finds bright squares."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import DET_CONFIG, SEG_CONFIG, load_tool
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from prediction_stubs import META, find_squares, label_sample
from support.prediction.inputs import Reader, Source
from tiny_data import write_image


@pytest.fixture
def tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_tool: Callable[..., int]
) -> Callable[..., int]:
    """Runs image_demo.py with its arguments from IMAGE on; ``tool.predict`` may be replaced."""
    monkeypatch.chdir(tmp_path)
    Path('weights.pth').touch()
    demo = load_tool('image_demo')

    def build(cfg: Config, *_: object) -> tuple:
        init_default_scope(cfg.default_scope)
        return SimpleNamespace(dataset_meta=META), SimpleNamespace()

    monkeypatch.setattr(demo, 'build', build)
    monkeypatch.setattr(demo, 'predictor', lambda *_: lambda pictures: run.predict(pictures))

    def run(*arguments: object) -> int:
        return run_tool('image_demo', DET_CONFIG, 'weights.pth', *arguments)

    run.predict = find_squares
    return run


def square(number: int) -> np.ndarray:
    """A bright square at a place that the number gives."""
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[20:40, 10 + number : 30 + number] = 255
    return picture


def boxes(results: list[dict]) -> list[list[float]]:
    return [result['box_xyxy'] for result in results]


def write_video(path: str, frames: int) -> None:
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'MJPG'), 10, (80, 60))
    for number in range(frames):
        writer.write(square(number))
    writer.release()


@pytest.mark.parametrize('batch', [1, 4])
def test_images_and_videos_in_one_run(batch: int, tool: Callable[..., int]) -> None:
    write_image(Path('a.png'), square(0))
    write_video('clip.avi', 6)
    write_image(Path('b.png'), square(30))
    assert tool('a.png', 'clip.avi', 'b.png', '--masks', '--batch-size', batch) == 0
    found = json.loads(Path('predictions/predictions.json').read_text())
    assert list(found) == ['a.png', 'clip.avi', 'b.png']
    assert boxes(found['a.png']) == [[10, 20, 30, 40]]
    assert boxes(found['b.png']) == [[40, 20, 60, 40]]
    assert [(f['frame'], f['seconds']) for f in found['clip.avi']] == [
        (i, i / 10) for i in range(6)
    ]
    for frame in found['clip.avi']:
        (box,) = boxes(frame['found'])
        assert box == pytest.approx([10 + frame['frame'], 20, 30 + frame['frame'], 40], abs=2)
        assert frame['found'][0]['mask']['size'] == [60, 80]
    drawn = list(Reader([Source('predictions/clip.avi.mp4')]))
    assert [frame.pixels.shape for frame in drawn] == [(60, 80, 3)] * 6
    inside = [frame.pixels[35, 20 + i].astype(int) for i, frame in enumerate(drawn)]
    assert all(np.ptp(colour) > 20 for colour in inside)  # of its class, where there was white
    assert sorted(map(str, Path('predictions').iterdir())) == [
        f'predictions/{name}'
        for name in ('a.png.png', 'b.png.png', 'clip.avi.mp4', 'predictions.json')
    ]


def test_a_segmentor_has_a_label_map_an_image_and_a_frame(
    tool: Callable[..., int], run_tool: Callable[..., int]
) -> None:
    tool.predict = lambda pictures: [
        label_sample((each.min(axis=-1) > 128).astype(np.int64)) for each in pictures
    ]
    write_video('clip.avi', 3)
    write_image(Path('a.png'), square(0))
    status = run_tool('image_demo', SEG_CONFIG, 'weights.pth', 'clip.avi', 'a.png', '--masks')
    assert status == 0
    maps = [f'clip.avi.labels/{i:06}.png' for i in range(3)] + ['a.png.labels.png']
    for name, number in zip(maps, (0, 1, 2, 0), strict=True):
        labels = np.asarray(Image.open(f'predictions/{name}'))
        expected = square(number)[..., 0] > 128
        assert (labels == expected).mean() > 0.98  # a video's edges are blurred
    found = json.loads(Path('predictions/predictions.json').read_text())
    assert found['a.png'] == {'dark': 0.9167, 'bright': 0.0833}
    assert [set(frame['found']) for frame in found['clip.avi']] == [{'dark', 'bright'}] * 3
    assert len(list(Reader([Source('predictions/clip.avi.mp4')]))) == 3


def test_a_camera_ends_after_its_frames(
    tool: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video('clip.avi', 9)
    open_video = cv2.VideoCapture
    monkeypatch.setattr(
        cv2, 'VideoCapture', lambda name: open_video('clip.avi' if name == 3 else name)
    )
    assert tool('3', '--frames', 4) == 0
    (frames,) = json.loads(Path('predictions/predictions.json').read_text()).values()
    assert [frame['frame'] for frame in frames] == list(range(4))
    assert len(list(Reader([Source('predictions/camera_3.mp4')]))) == 4


@pytest.mark.parametrize(
    ('stop', 'status', 'line'),
    [
        (KeyboardInterrupt(), 130, 'interrupted; 4 of 8 images are in predictions/predictions.js'),
        (OSError(28, 'No space'), 2, 'predictions/predictions.json: No space; 4 of 8 images are i'),
    ],
)
def test_what_was_found_before_an_interruption_is_kept(
    stop: BaseException, status: int, line: str, tool: Callable[..., int],
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    write_image(Path('a.png'), square(0))
    write_video('clip.avi', 6)
    write_image(Path('b.png'), square(30))
    calls = []

    def predict(pictures: list[np.ndarray]) -> list:
        calls.append(pictures)
        if len(calls) == 5:
            raise stop
        return find_squares(pictures)

    tool.predict = predict
    assert tool('a.png', 'clip.avi', 'b.png', '--coco-json', 'new/coco.json') == status
    errors = capfd.readouterr().err
    assert errors.startswith(f'error: {line}')
    assert errors.count('\n') == 1
    found = json.loads(Path('predictions/predictions.json').read_text())
    assert {name: len(results) for name, results in found.items()} == {'a.png': 1, 'clip.avi': 3}
    assert len(list(Reader([Source('predictions/clip.avi.mp4')]))) == 3
    assert [each['image_id'] for each in json.loads(Path('new/coco.json').read_text())] == [
        1, 2, 3, 4,
    ]  # fmt: skip
    assert {path.name for path in Path('predictions').iterdir()} == {
        'a.png.png', 'clip.avi.mp4', 'predictions.json',
    }  # fmt: skip


def test_a_second_run_overwrites_only_when_told_to(
    tool: Callable[..., int], capfd: pytest.CaptureFixture
) -> None:
    for folder, number in (('a', 0), ('b', 30)):
        write_image(Path(folder) / '1.png', square(number))
    assert tool('a') == 0
    assert tool('b') == 2
    assert 'predictions.json is there already' in capfd.readouterr().err
    found = Path('predictions/predictions.json')
    assert list(json.loads(found.read_text())) == ['a/1.png']
    assert tool('b', '--overwrite') == 0
    assert list(json.loads(found.read_text())) == ['b/1.png']


def test_progress_says_how_long_it_takes(
    tool: Callable[..., int], capfd: pytest.CaptureFixture
) -> None:
    for i in range(3):
        write_image(Path(f'in/{i}.png'), square(i))
    Path('in/1.png').write_text('no image')
    assert tool('in') == 2
    first, last = capfd.readouterr().out.splitlines()
    assert first.startswith('1/3 predictions/0.png.png, ')
    assert first.endswith(' s left')
    assert last == '3/3 predictions/2.png.png'


def test_tiles_are_put_together_before_anything_is_written(tool: Callable[..., int]) -> None:
    picture = np.zeros((150, 400, 3), np.uint8)
    for x in (20, 90, 210, 370):
        picture[70:90, x : x + 20] = 255
    write_image(Path('large.png'), picture)
    shapes = set()

    def predict(pictures: list[np.ndarray]) -> list:
        shapes.update(each.shape[:2] for each in pictures)
        return find_squares(pictures)

    tool.predict = predict
    assert tool('large.png', '--tile', 100, '--masks', '--coco-json', 'coco.json') == 0
    assert shapes == {(150, 400), (100, 100)}
    (found,) = json.loads(Path('predictions/predictions.json').read_text()).values()
    expected = [[x, 70, x + 20, 90] for x in (20, 90, 210, 370)]
    assert sorted(boxes(found)) == expected
    entries = json.loads(Path('coco.json').read_text())
    assert sorted(each['bbox'] for each in entries) == [[x, 70, 20, 20] for x in (20, 90, 210, 370)]
    drawn = cv2.imread('predictions/large.png.png')
    assert np.ptp(drawn[85, 215].astype(int)) > 20


def test_masks_that_a_detector_lacks_leave_nothing_behind(
    tool: Callable[..., int], capfd: pytest.CaptureFixture
) -> None:
    def boxes_alone(pictures: list[np.ndarray]) -> list:
        samples = find_squares(pictures)
        for sample in samples:
            del sample.pred_instances.masks
        return samples

    write_image(Path('a.png'), square(0))
    tool.predict = boxes_alone
    assert tool('a.png', '--masks') == 2
    assert capfd.readouterr().err.startswith('error: --masks: this model predicts boxes alone')
    assert list(Path('predictions').iterdir()) == []
    assert tool('a.png') == 0


@pytest.mark.parametrize(
    ('arguments', 'line'),
    [
        (('--batch-size', 0), '--batch-size 0: give 1 or more'),
        (('--frames', -1), '--frames -1: give 1 or more'),
        (('--tile', 31), '--tile 31: give 32 or more'),
        (('--overlap', 0.5), '--overlap: is of tiles; give their --tile SIZE too'),
        (('--tile', 64, '--overlap', 1), '--overlap 1.0: give a share from 0 to 0.9'),
    ],
)
def test_numbers_without_sense_are_refused(
    arguments: tuple, line: str, tool: Callable[..., int], capfd: pytest.CaptureFixture
) -> None:
    write_image(Path('a.png'), square(0))
    assert tool('a.png', *arguments) == 2
    assert capfd.readouterr().err == f'error: {line}\n'
    assert not Path('predictions').exists()


def test_a_segmentor_has_no_objects_for_coco(
    tool: Callable[..., int], run_tool: Callable[..., int], capfd: pytest.CaptureFixture
) -> None:
    write_image(Path('a.png'), square(0))
    assert run_tool('image_demo', SEG_CONFIG, 'weights.pth', 'a.png', '--coco-json', 'x') == 2
    assert capfd.readouterr().err.startswith('error: --coco-json: ')
