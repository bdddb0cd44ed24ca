"""tools/support/prediction/inputs.py: what is read, and what is told."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from support import cli
from support.prediction import inputs
from support.prediction.inputs import Picture, Reader, Source, batches, find_sources
from tiny_data import write_image


def write_video(path: Path, frames: int, rate: float = 10.0) -> Path:
    """Frames of 64 x 48 pixels, each of one gray: 8 times its number."""
    code = cv2.VideoWriter_fourcc(*('MJPG' if path.suffix == '.avi' else 'mp4v'))
    writer = cv2.VideoWriter(str(path), code, rate, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), (8 * number) % 256, np.uint8))
    writer.release()
    return path


def test_files_folders_and_cameras_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ('a/2.png', 'a/1.JPG', 'b.mp4', 'a/notes.txt', 'a/clip.mp4', '7'):
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = find_sources(['b.mp4', 'a', './a/2.png', '0', '0', '7', 'a/clip.mp4'])
    assert [(source.name, source.camera, source.moves) for source in found] == [
        ('b.mp4', False, True),
        ('a/1.JPG', False, False),
        ('a/2.png', False, False),
        ('0', True, True),
        ('7', False, False),  # a file of that name
        ('a/clip.mp4', False, True),  # of a folder only the images
    ]


@pytest.mark.parametrize('name', ['-1', 'absent.jpg', '1.5'])
def test_what_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(cli.UserError, match=f'{name}: no such file or folder'):
        find_sources([name])


def picture(width: int) -> Picture:
    return Picture(Source(str(width)), np.zeros((4, width, 3), np.uint8))


@pytest.mark.parametrize(
    ('size', 'expected'),
    [(1, [[5], [5], [5], [6], [5]]), (2, [[5, 5], [5], [6], [5]]), (9, [[5, 5, 5], [6], [5]])],
)
def test_a_batch_is_of_one_shape_and_in_order(size: int, expected: list) -> None:
    widths = [5, 5, 5, 6, 5]
    found = batches(map(picture, widths), size)
    assert [[each.pixels.shape[1] for each in batch] for batch in found] == expected


def test_a_full_batch_does_not_wait_for_the_next_picture() -> None:
    pictures = map(picture, [5, 5])
    assert len(next(batches(pictures, 1))) == 1
    assert len(list(pictures)) == 1


@pytest.mark.parametrize('suffix', ['.mp4', '.avi'])
def test_frames_of_a_video(suffix: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / f'clip{suffix}', 12)
    reader = Reader([Source(str(path))])
    found = list(reader)
    assert reader.failed == []
    assert [each.frame for each in found] == list(range(12))
    assert [each.seconds for each in found] == [i / 10 for i in range(12)]
    for each in found:
        assert each.pixels.shape == (48, 64, 3)
        assert each.pixels.mean() == pytest.approx(8 * each.frame, abs=4)
    assert [each.frame for each in Reader([Source(str(path))], frames=3)] == [0, 1, 2]


def test_colours_are_rgb(tmp_path: Path) -> None:
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 2] = 255  # OpenCV's order
    write_image(tmp_path / 'red.png', red)
    writer = cv2.VideoWriter(
        str(tmp_path / 'red.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 10, (64, 48)
    )
    writer.write(red)
    writer.release()
    for each in Reader([Source(str(tmp_path / name)) for name in ('red.png', 'red.avi')]):
        assert (each.pixels.mean(axis=(0, 1)) > 200).tolist() == [True, False, False]


def test_a_video_cut_short_gives_what_it_has_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole = write_video(tmp_path / 'whole.avi', 40).read_bytes()
    (tmp_path / 'half.avi').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'none.mp4').write_bytes(b'no video')
    sources = [Source(str(tmp_path / name)) for name in ('half.avi', 'none.mp4')]
    reader = Reader(sources)
    found = list(reader)
    assert 0 < len(found) < 40
    assert reader.failed == sources
    errors = capsys.readouterr().err.splitlines()
    assert f'half.avi: only {len(found)} of 40 frames can be decoded' in errors[-2]
    assert errors[-1].endswith('none.mp4: no video that can be decoded; left out')


class Camera:
    """Stands for OpenCV's capture of a camera that sees the same for ever."""

    def __init__(self, number: int) -> None:
        assert number == 1
        self.released = False

    def get(self, what: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, np.ndarray]:
        return True, np.full((48, 64, 3), 9, np.uint8)

    def release(self) -> None:
        self.released = True


def test_a_camera_is_read_until_enough_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(
        inputs.cv2, 'VideoCapture', lambda number: opened.append(Camera(number)) or opened[-1]
    )
    found = list(Reader([Source('1', camera=True)], frames=5))
    assert [each.frame for each in found] == list(range(5))
    assert all(each.rate == inputs.USUAL_RATE for each in found)
    assert opened[0].released


def test_a_camera_that_is_not_there_is_told(capfd: pytest.CaptureFixture) -> None:
    reader = Reader([Source('97', camera=True)])
    assert list(reader) == []
    assert len(reader.failed) == 1
    assert '97: no camera that can be read; left out' in capfd.readouterr().err
