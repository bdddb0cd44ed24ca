"""What is shown of what is found: only what is asked for, nothing computed again."""

import io
import itertools
import json
import threading
import time

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement
from mmpretrain.structures import DataSample
from PIL import Image
from prediction_stubs import META, found, label_sample
from support.prediction.inputs import Picture, Source
from support.web.finder import Finder
from support.web.views import LAYERS, view

PIXELS = np.full((200, 300, 3), 100, np.uint8)
PICTURE = Picture(Source('photo.jpg'), PIXELS)
KINDS = {
    'pred_instances': ('detection', 'mmdet', 'DetLocalVisualizer'),
    'pred_sem_seg': ('segmentation', 'mmseg', 'SegLocalVisualizer'),
    'pred_score': ('classification', 'mmpretrain', 'UniversalVisualizer'),
}
"""Task, scope and visualizer, by what a prediction has."""


def finder(sample: BaseDataElement, meta: dict = META) -> Finder:
    """What finds that, once."""
    samples = iter([sample])
    task, scope, visualizer = next(kind for field, kind in KINDS.items() if field in sample)
    init_default_scope(scope)
    cfg = Config(dict(visualizer=dict(type=visualizer)))
    return Finder('model', 'model.pth', meta, lambda pixels: next(samples), cfg, task)


@pytest.fixture
def objects() -> Finder:
    masks = np.zeros((3, 200, 300), bool)
    masks[0, 10:90, 10:140] = masks[1, 110:190, 150:290] = masks[2, 10:20, 200:220] = True
    boxes = [[10, 10, 140, 90], [150, 110, 290, 190], [200, 10, 220, 20]]
    return finder(found(boxes, [1, 0, 1], [0.9, 0.5, 0.2], masks))


def drawn(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_threshold_is_for_all_that_is_shown(objects: Finder) -> None:
    searched = objects.find(PICTURE)
    several = view(searched, objects, 0.5, LAYERS)
    one = view(searched, objects, 0.6, LAYERS)
    assert several.rows == [['bright', 0.9, 10, 10, 140, 90], ['dark', 0.5, 150, 110, 290, 190]]
    assert one.rows == several.rows[:1]
    assert several.sentence.startswith('2 objects at 0.50 or above, found in ')
    assert one.sentence.startswith('1 object at 0.60')
    assert '300 × 200 pixels' in one.sentence
    for shown in (several, one):
        entries = json.loads(shown.files['.json'])['photo.jpg']
        assert [each['class'] for each in entries] == [row[0] for row in shown.rows]
        assert set(entries[0]) == {'class', 'score', 'box_xyxy', 'mask'}
    assert 'dark' in several.legend
    assert 'dark' not in one.legend
    assert 'rgb(0, 200, 0)' in one.legend  # the palette's
    changed = (drawn(several.files['.png']) != drawn(one.files['.png'])).any(-1)
    assert changed[110:190, 150:290].any()  # the second object
    assert not changed[:100].any()


def test_what_is_too_sure_a_threshold_is_told(objects: Finder) -> None:
    shown = view(objects.find(PICTURE), objects, 0.95, LAYERS)
    assert shown.rows == []
    assert 'the surest has 0.90' in shown.sentence
    assert np.array_equal(drawn(shown.files['.png']), PIXELS)


def test_layers_are_drawn_each_by_itself(objects: Finder) -> None:
    searched = objects.find(PICTURE)
    pictures = {
        layers: drawn(view(searched, objects, 0.5, list(layers)).files['.png'])
        for layers in [('boxes', 'masks'), ('boxes',), ('masks',)]
    }
    for one, other in itertools.combinations(pictures.values(), 2):
        assert (one != other).any()
    inside = np.s_[160:180, 170:190]  # of the second object, beside its line and its name
    assert (pictures['boxes',][inside] == 100).all()
    assert (pictures['masks',][inside] != 100).any()


def test_a_label_overlay_has_shares_and_a_map() -> None:
    labels = np.zeros((200, 300), np.int64)
    labels[:, :75] = 1
    model = finder(label_sample(labels))
    shown = view(model.find(PICTURE), model, 0.5, LAYERS)
    assert shown.rows == [['dark', '75.0%'], ['bright', '25.0%']]
    assert json.loads(shown.files['.json']) == {'photo.jpg': {'dark': 0.75, 'bright': 0.25}}
    assert np.array_equal(drawn(shown.files['.labels.png']), labels)
    picture = drawn(shown.files['.png']).astype(int)
    assert (picture[:, :75, 1] > picture[:, :75, 0]).all()  # green
    assert (picture[:, 75:, 0] > picture[:, 75:, 1]).all()  # red


def test_of_an_image_as_a_whole_the_likeliest_classes_are_shown() -> None:
    sample = DataSample().set_pred_score(torch.tensor([0.03, 0.5, 0.25, 0.1, 0.07, 0.05]))
    model = finder(sample, dict(classes=tuple('abcdef'), palette=None))
    shown = view(model.find(PICTURE), model, 0.5, LAYERS)
    assert shown.rows == [['b', 0.5], ['c', 0.25], ['d', 0.1], ['e', 0.07], ['f', 0.05]]
    assert shown.sentence.startswith('The 5 likeliest of 6 classes, found in ')
    entries = json.loads(shown.files['.json'])['photo.jpg']
    assert entries[0] == {'class': 'b', 'score': 0.5}
    assert drawn(shown.files['.png']).ndim == 3


def test_names_of_classes_are_text_whatever_they_say() -> None:
    meta = dict(classes=('<script>x</script>', 'b'), palette=None)
    model = finder(found([[1, 1, 9, 9]], [0], [0.9], np.zeros((1, 200, 300), bool)), meta)
    shown = view(model.find(PICTURE), model, 0.5, LAYERS)
    assert '&lt;script&gt;' in shown.legend
    assert '<script' not in shown.legend


def test_threads_are_served_one_after_the_other() -> None:
    inside, most = 0, 0

    def predict(pixels: np.ndarray) -> BaseDataElement:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        inside -= 1
        value = int(pixels[0, 0, 0])
        return found([[1, 1, value, value]], [0], [0.9], np.zeros((1, 40, 60), bool))

    init_default_scope('mmdet')
    cfg = Config(dict(visualizer=dict(type='DetLocalVisualizer')))
    model = Finder('model', 'model.pth', META, predict, cfg, 'detection')
    right = {}

    def visit(value: int) -> None:
        picture = Picture(Source(f'{value}.png'), np.full((40, 60, 3), value, np.uint8))
        rows = view(model.find(picture), model, 0.5, LAYERS).rows
        right[value] = rows == [['dark', 0.9, 1, 1, value, value]]

    threads = [threading.Thread(target=visit, args=(value,)) for value in range(10, 14)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert right == dict.fromkeys(range(10, 14), True)
