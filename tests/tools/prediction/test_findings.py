"""tools/support/prediction/findings.py and drawing.py: what is kept of a prediction, and shown."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from prediction_stubs import META, find_squares, label_sample
from pycocotools import mask as coco_mask
from support import cli
from support.prediction import drawing
from support.prediction.findings import label_map, named, objects, run_lengths, shares
from support.prediction.inputs import Picture, Reader, Source


@pytest.fixture
def scene() -> np.ndarray:
    """Two bright rectangles, 20 x 10 and 30 x 30 pixels, in the dark; RGB."""
    picture = np.zeros((80, 120, 3), np.uint8)
    picture[10:20, 5:25] = 255
    picture[40:70, 60:90] = 255
    return picture


def test_objects_have_what_the_prediction_has(scene: np.ndarray) -> None:
    (sample,) = find_squares([scene])
    small, large = named(objects(sample, 0.0, masks=True), META['classes'])
    assert small['class'] == large['class'] == 'bright'
    assert small['box_xyxy'] == [5, 10, 25, 20]
    assert large['box_xyxy'] == [60, 40, 90, 70]
    assert small['score'] == pytest.approx(0.5 + 0.4 * 200 / 1e4, abs=1e-4)
    assert small['mask']['size'] == [80, 120]
    both = coco_mask.decode(small['mask']) + coco_mask.decode(large['mask'])
    assert np.array_equal(both, (scene[..., 0] > 0).astype(np.uint8))


def test_the_score_decides_what_is_kept(scene: np.ndarray) -> None:
    (sample,) = find_squares([scene])
    scores = sample.pred_instances.scores
    kept = objects(sample, float(scores.max()), masks=True)
    assert [each['box'] for each in kept] == [[60, 40, 90, 70]]
    assert 'mask' not in objects(sample, 0.0, masks=False)[0]


def test_masks_of_a_model_that_has_none_are_refused(scene: np.ndarray) -> None:
    (sample,) = find_squares([scene])
    del sample.pred_instances.masks
    assert len(objects(sample, 0.0, masks=False)) == 2
    with pytest.raises(cli.UserError, match='--masks: this model predicts boxes alone'):
        objects(sample, 0.0, masks=True)


def test_shares_are_of_all_pixels() -> None:
    labels = np.array([[0, 0, 2, 2], [2, 2, 2, 2]])
    assert shares(label_sample(labels), ('a', 'b', 'c')) == {'a': 0.25, 'c': 0.75}


@pytest.mark.parametrize('first', [0, 1])
def test_a_label_map_is_one_of_the_data_set(first: int) -> None:
    labels = np.arange(12).reshape(3, 4) % 3
    colours = [(10, 20, 30), (40, 50, 60), (70, 80, 90)]
    meta = dict(classes=('a', 'b', 'c'), palette=colours, reduce_zero_label=bool(first))
    content = label_map(label_sample(labels), meta)
    picture = Image.open(io.BytesIO(content))
    assert picture.mode == 'P'
    assert np.array_equal(np.asarray(picture), labels + first)
    assert np.array_equal(np.asarray(picture.convert('RGB')), np.array(colours)[labels])
    # as mmseg's loader reads it
    read = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert read.shape[:2] == labels.shape


def test_more_classes_than_a_byte_counts_are_kept() -> None:
    labels = np.array([[0, 299, 255, 256]])
    meta = dict(classes=('x',) * 300, palette=[(0, 0, 0)] * 300)
    content = np.frombuffer(label_map(label_sample(labels), meta), np.uint8)
    assert np.array_equal(cv2.imdecode(content, cv2.IMREAD_UNCHANGED), labels)


@pytest.fixture
def drawing_of_masks() -> drawing.Drawing:
    init_default_scope('mmdet')
    cfg = Config(dict(visualizer=dict(type='DetLocalVisualizer', name='drawn')))
    return drawing.Drawing(cfg, META, pred_score_thr=0.3)


def test_masks_in_run_length_code_are_drawn_as_arrays_are(
    scene: np.ndarray, drawing_of_masks: drawing.Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Picture(Source('scene.png'), scene)
    (sample,) = find_squares([scene])

    def draw(sample: DetDataSample) -> np.ndarray:
        np.random.seed(0)  # mmdet shades each object's colour by chance
        return drawing_of_masks(picture, sample)

    plain = draw(sample)
    assert plain.shape == scene.shape
    assert not np.array_equal(plain, scene)
    coded = find_squares([scene])[0]
    coded.pred_instances.masks = run_lengths(sample.pred_instances.masks)
    assert np.array_equal(draw(coded), plain)
    monkeypatch.setattr(drawing, 'MASKS_DRAWN', 2 * scene.shape[0] * scene.shape[1] - 1)
    boxes_alone = draw(coded)
    assert not np.array_equal(boxes_alone, plain)
    assert not np.array_equal(boxes_alone, scene)
    assert isinstance(coded.pred_instances.masks, list)  # what is written has them all the same


def test_a_video_has_the_pictures_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / 'video.mp4'
    with drawing.VideoFile(path, 10.0, (48, 64, 3)) as video:
        for gray in (0, 100, 200):
            video.add(np.full((48, 64, 3), gray, np.uint8))
        video.add(np.full((24, 32, 3), 250, np.uint8))  # of another size
        assert not path.exists()
    frames = list(Reader([Source(str(path))]))
    means = [frame.pixels.mean() for frame in frames]
    assert means == pytest.approx([0, 100, 200, 250], abs=6)
    assert {(frame.rate, frame.pixels.shape) for frame in frames} == {(10.0, (48, 64, 3))}
    assert list(tmp_path.iterdir()) == [path]


def test_a_video_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(cli.UserError, match='OpenCV cannot write this video'):
        drawing.VideoFile(tmp_path / 'nowhere/video.mp4', 10.0, (48, 64, 3))
