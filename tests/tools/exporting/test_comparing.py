"""What the comparison of a file with its model lets pass, and what it does not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from support.cli import UserError
from support.exported import Detections
from support.exporting.comparing import Differences, compare, compare_objects

BOXES = np.array([[10, 10, 40, 50], [50, 20, 90, 60], [5, 60, 25, 90]], dtype=np.float32)
SCORES = np.array([0.9, 0.6, 0.3], dtype=np.float32)
MASKS = np.full((3, 28, 28), 0.9, dtype=np.float32)


def found(boxes=BOXES, scores=SCORES, labels=(0, 1, 1), masks=MASKS):
    """Of a picture of 100 x 100 pixels."""
    arrays = (np.asarray(boxes, np.float32), np.asarray(scores, np.float32), np.asarray(labels))
    return Detections(*arrays, masks, 100, 100)


def truth():
    these = found()
    return InstanceData(
        bboxes=torch.from_numpy(these.boxes),
        scores=torch.from_numpy(these.scores),
        labels=torch.from_numpy(these.labels),
        masks=torch.from_numpy(these.full_masks()),
    )


def met(other, cut=0.05, most=100):
    differences = Differences()
    compare_objects(truth(), other, cut, most, differences)
    return differences


def test_equal_objects_in_another_order_pass():
    order = [2, 0, 1]
    met(found(BOXES[order], SCORES[order], [1, 0, 1])).check()


@pytest.mark.parametrize(
    ('change', 'line'),
    [
        (dict(boxes=BOXES + 0.06), 'boxes'),
        (dict(scores=SCORES - 0.002), 'scores'),
        (dict(labels=(0, 1, 0)), 'found by one alone'),
        (dict(boxes=BOXES + 9), 'found by one alone'),
        (dict(masks=MASKS * np.tri(28, dtype=np.float32)), 'masks'),
        (dict(boxes=BOXES * np.float32('nan')), 'alone'),
        (dict(boxes=BOXES[:2], scores=SCORES[:2], labels=(0, 1), masks=MASKS[:2]), 'alone'),
    ],
    ids=['boxes', 'scores', 'labels', 'places', 'masks', 'nan', 'fewer'],
)
def test_objects_that_differ_are_refused(change, line):
    with pytest.raises(UserError, match=line):
        met(found(**change)).check()


@pytest.mark.parametrize('change', [dict(boxes=BOXES + 0.04), dict(scores=SCORES - 0.0009)])
def test_rounding_passes(change):
    met(found(**change)).check()


def test_an_object_at_the_score_below_which_none_is_kept_may_be_missing():
    fewer = found(BOXES[:2], SCORES[:2], (0, 1), MASKS[:2])
    met(fewer, cut=0.2995).check()
    with pytest.raises(UserError, match='alone'):
        met(fewer, cut=0.2).check()


def test_of_as_many_as_are_kept_the_last_may_be_another():
    other = found([*BOXES[:2], [70, 5, 90, 15]], (0.9, 0.6, 0.3003))
    met(other, most=3).check()
    with pytest.raises(UserError, match='alone'):
        met(other, most=4).check()


@pytest.mark.parametrize(('wrong', 'passes'), [(0, True), (1, True), (2, False)])
def test_label_maps_may_differ_in_a_pixel_of_ten_thousand(wrong, passes):
    labels = np.zeros((100, 100), dtype=np.int64)
    other = labels.copy()
    other.reshape(-1)[:wrong] = 1
    sample = SimpleNamespace(pred_sem_seg=SimpleNamespace(data=torch.from_numpy(labels)[None]))
    exported = SimpleNamespace(predict=lambda _: other)
    differences = compare(lambda _: [sample], exported, [np.zeros((100, 100, 3), np.uint8)])
    if passes:
        differences.check()
    else:
        with pytest.raises(UserError, match='label maps'):
            differences.check()
