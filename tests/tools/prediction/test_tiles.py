"""tools/support/prediction/tiles.py: every object of a large image is found once, in its place."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from prediction_stubs import find_squares
from pycocotools import mask as coco_mask
from support.prediction.findings import objects
from support.prediction.tiles import merged, slide, starts, tiled

HEIGHT, WIDTH = 700, 1100
TILE, OVERLAP = 256, 0.25
SEEN = 300
"""Longer side of what the detector sees: it makes larger pictures smaller."""
LEAST = 6
"""Pixels of what it finds, of those that it sees."""


def see(pictures: list[np.ndarray]) -> list:
    """Finds bright squares in pictures that are made smaller first, as test pipelines do."""
    samples = []
    for picture in pictures:
        scale = max(1.0, max(picture.shape[:2]) / SEEN)
        size = [round(side / scale) for side in picture.shape[1::-1]]
        (sample,) = find_squares([cv2.resize(picture, size, interpolation=cv2.INTER_AREA)], LEAST)
        instances = sample.pred_instances
        instances.bboxes = instances.bboxes * scale
        masks = [
            cv2.resize(mask.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
            for mask in instances.masks.numpy()
        ]
        instances.masks = torch.from_numpy(np.array(masks).reshape(-1, *picture.shape[:2])).bool()
        samples.append(sample)
    return samples


def scene(squares: list[tuple[int, int, int, int]]) -> np.ndarray:
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for x1, y1, x2, y2 in squares:
        picture[y1:y2, x1:x2] = 255
    return picture


def overlap(a: list[float], b: tuple[int, ...]) -> float:
    """Intersection over union of two boxes."""
    w = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return w * h / (sum(areas) - w * h)


def random_scene(seed: int) -> list[tuple[int, int, int, int]]:
    """Squares of 8 to 60 pixels at any place, none nearer to another than 4 pixels."""
    rng = np.random.default_rng(seed)
    squares, taken = [], np.zeros((HEIGHT, WIDTH), bool)
    for _ in range(120):
        side = int(rng.integers(8, 60))
        x, y = int(rng.integers(0, WIDTH - side)), int(rng.integers(0, HEIGHT - side))
        around = np.s_[max(0, y - 4) : y + side + 4, max(0, x - 4) : x + side + 4]
        if not taken[around].any():
            taken[around] = True
            squares.append((x, y, x + side, y + side))
    return squares


LARGE = [(300, 100, 900, 600), (20, 20, 60, 60), (1000, 650, 1030, 680), (10, 690, 40, 700)]
"""One larger than a tile, with small ones beside it."""


@pytest.mark.parametrize(
    ('squares', 'batch_size'), [(random_scene(0), 1), (random_scene(1), 4), (LARGE, 4)]
)
def test_every_object_is_found_once(squares: list, batch_size: int) -> None:
    picture = scene(squares)
    predict = tiled(see, TILE, OVERLAP, batch_size, score_thr=0.3, tell=lambda text: None)
    (sample,) = predict([picture])
    found = objects(sample, 0.3, masks=True)
    assert len(found) == len(squares)
    scores = [each['score'] for each in found]
    assert scores == sorted(scores, reverse=True)
    union = np.zeros((HEIGHT, WIDTH), int)
    for square in squares:
        (match,) = [each for each in found if overlap(each['box'], square) > 0.6]
        mask = coco_mask.decode(match['mask'])
        assert mask.shape == (HEIGHT, WIDTH)
        x1, y1, x2, y2 = square
        assert mask[y1:y2, x1:x2].mean() > 0.8
        union += mask
    assert (union > 0).sum() == pytest.approx((picture[..., 0] > 0).sum(), rel=0.02)


def test_what_an_edge_cuts_never_stands_for_the_whole() -> None:
    """Nor where it is the more certain of the two."""

    def surer_of_less(pictures: list[np.ndarray]) -> list:
        samples = find_squares(pictures)
        for sample in samples:
            sample.pred_instances.scores = 1 - sample.pred_instances.scores
        return samples

    squares = random_scene(2)
    picture = scene(squares)
    (sample,) = tiled(surer_of_less, TILE, OVERLAP, tell=lambda text: None)([picture])
    found = objects(sample, 0.0, masks=True)
    assert sorted(tuple(each['box']) for each in found) == sorted(squares)
    masks = sum(coco_mask.decode(each['mask']).astype(int) for each in found)
    assert np.array_equal(masks, picture[..., 0] // 255)


def test_only_a_whole_object_of_its_class_and_place_replaces_a_part() -> None:
    boxes = [[0, 0, 100, 100], [60, 10, 90, 40], [60, 60, 90, 90], [80, 20, 120, 60]]
    part = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32),
        labels=torch.tensor([1, 1, 0, 1]),  # the third is of another class, the last half outside
        scores=torch.tensor([0.5, 0.9, 0.8, 0.7]),
        cut=torch.tensor([False, True, True, True]),
    )
    found = merged([part], (200, 200))
    assert found.bboxes.tolist() == [boxes[2], boxes[3], boxes[0]]
    assert merged([part[1:2]], (200, 200)).bboxes.tolist() == [boxes[1]]  # no other is there


def test_less_certain_objects_are_dropped() -> None:
    (sample,) = tiled(find_squares, TILE, OVERLAP, score_thr=0.6, tell=lambda text: None)(
        [scene(LARGE)]
    )
    assert sample.pred_instances.bboxes.tolist() == [list(LARGE[0])]


def test_the_whole_image_alone_does_not_show_what_is_small() -> None:
    squares = random_scene(0)
    (sample,) = see([scene(squares)])
    assert len(sample.pred_instances) < 0.8 * len(squares)


def test_an_image_smaller_than_a_tile_is_predicted_as_it_is() -> None:
    calls = []

    def predict(pictures: list[np.ndarray]) -> list:
        calls.append([picture.shape for picture in pictures])
        return find_squares(pictures)

    picture = scene([(10, 10, 30, 30)])[:TILE, :TILE]
    (sample,) = tiled(predict, TILE, OVERLAP)([picture])
    assert calls == [[picture.shape]]
    assert torch.equal(
        sample.pred_instances.bboxes, find_squares([picture])[0].pred_instances.bboxes
    )


def test_objects_of_two_classes_in_one_place_are_two() -> None:
    def both(pictures: list[np.ndarray]) -> list:
        samples = find_squares(pictures)
        for sample in samples:
            found = sample.pred_instances
            other = found.clone()
            other.labels = torch.zeros_like(found.labels)
            sample.pred_instances = type(found).cat([found, other])
        return samples

    predict = tiled(both, TILE, OVERLAP, tell=lambda text: None)
    (sample,) = predict([scene(LARGE)])
    assert sorted(sample.pred_instances.labels.tolist()) == [0] * len(LARGE) + [1] * len(LARGE)


def test_a_detector_of_boxes_alone_has_no_masks() -> None:
    def boxes_alone(pictures: list[np.ndarray]) -> list:
        samples = find_squares(pictures)
        for sample in samples:
            del sample.pred_instances.masks
        return samples

    (sample,) = tiled(boxes_alone, TILE, OVERLAP, tell=lambda text: None)([scene(LARGE)])
    assert len(sample.pred_instances) == len(LARGE)
    assert 'masks' not in sample.pred_instances


def test_nothing_found_is_nothing() -> None:
    (sample,) = tiled(find_squares, TILE, OVERLAP, tell=lambda text: None)([scene([])])
    assert len(objects(sample, 0.0, masks=True)) == 0


@pytest.mark.parametrize('length', [1, 255, 256, 257, 448, 449, 1000, 12345])
@pytest.mark.parametrize('share', [0.0, 0.25, 0.5, 0.9])
def test_tiles_cover_all_and_overlap_enough(length: int, share: float) -> None:
    places = starts(length, 256, share)
    assert places[0] == 0
    assert places[-1] == max(0, length - 256)
    steps = np.diff(places)
    assert (steps > 0).all()
    assert (256 - steps >= 256 * share - 1).all()
    fewest = int(np.ceil(max(0, length - 256) / (256 * (1 - share)))) + 1
    assert len(places) == fewest


def test_a_segmentor_slides_over_the_image_at_its_own_size() -> None:
    steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(9, 9)), dict(type='Pack')]
    dataset = dict(pipeline=steps)
    cfg = Config(
        dict(model=dict(test_cfg=dict(mode='whole')), test_dataloader=dict(dataset=dataset))
    )
    slide(cfg, 200, 0.25)
    assert dict(cfg.model.test_cfg) == dict(mode='slide', crop_size=(200, 200), stride=(150, 150))
    assert [step.type for step in cfg.test_dataloader.dataset.pipeline] == [
        'LoadImageFromFile', 'Pack',
    ]  # fmt: skip
