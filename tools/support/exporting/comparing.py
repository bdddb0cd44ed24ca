"""Whether an exported file finds what the model in PyTorch finds, on some pictures."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from mmengine.structures import InstanceData
from support.cli import UserError
from support.exported import Detections, ExportedModel
from support.prediction.model import Predict
from torch import Tensor, nn

BOX, SCORE, LABELS = 0.05, 1e-3, 1e-4
"""The largest differences: pixels, of a score, and the share of a label map's pixels."""
MASK, MISSING = 1e-3, 0.01
"""The same of the pixels of all masks of a picture, and the share of objects that only one of the
two finds: of two boxes that overlap as much as NMS allows, rounding may drop either."""
FEATURE = 1e-3
"""The same of the backbone's features, in standard deviations of each."""

T, U = TypeVar('T'), TypeVar('U')


@dataclass
class Differences:
    """The largest ones met so far, of so many pictures, and the seconds that each took."""

    pictures: int = 0
    objects: int = 0
    alone: int = 0
    largest: dict[str, float] = field(default_factory=dict)
    torch_seconds: list[float] = field(default_factory=list)
    file_seconds: list[float] = field(default_factory=list)

    def meet(self, what: str, value: float) -> None:
        self.largest[what] = max(self.largest.get(what, 0.0), float(value))

    def both(self, in_torch: Callable[[], T], in_file: Callable[[], U]) -> tuple[T, U]:
        """What the two say of one more picture, and their seconds noted."""
        start = time.perf_counter()
        expected = in_torch()
        middle = time.perf_counter()
        found = in_file()
        self.torch_seconds.append(middle - start)
        self.file_seconds.append(time.perf_counter() - middle)
        self.pictures += 1
        return expected, found

    def lines(self) -> list[str]:
        """For people."""
        found = [f'{what} {value:.2g}' for what, value in self.largest.items()]
        if self.objects or self.alone:
            found.append(f'{self.objects} objects matched, {self.alone} found by one alone')
        torch_time, file_time = (
            np.median(each) for each in (self.torch_seconds, self.file_seconds)
        )
        return [
            f'largest differences on {self.pictures} pictures: {"; ".join(found) or "none met"}',
            f'seconds a picture: PyTorch {torch_time:.2f}, onnxruntime {file_time:.2f}',
        ]

    def check(self) -> None:
        """Raise where one is too large.

        Raises:
            UserError: which, and how large it may be.
        """
        limits = {
            'boxes (pixels)': BOX,
            'scores': SCORE,
            'masks (share of pixels)': MASK,
            'label maps (share of pixels)': LABELS,
            'features (standard deviations)': FEATURE,
        }
        for what, value in self.largest.items():
            if not value <= limits[what]:
                raise UserError(
                    f'the file differs from the model in PyTorch: {what} {value:.2g}, at most '
                    f'{limits[what]:g} is allowed; it is not kept'
                )
        if self.alone > MISSING * (self.objects + self.alone):
            raise UserError(
                f'the file differs from the model in PyTorch: {self.alone} of '
                f'{self.objects + self.alone} objects are found by one alone; it is not kept'
            )


def compare(
    predict: Predict,
    exported: ExportedModel,
    pictures: list[np.ndarray],
    cut: float = 0.0,
    most: int = sys.maxsize,
) -> Differences:
    """Both on the same pictures (H, W, 3), RGB, uint8.

    Args:
        predict: the model in PyTorch.
        cut, most: the score below which the detector keeps nothing, and how many it keeps.
    """
    differences = Differences()
    for picture in pictures:
        (sample,), found = differences.both(
            partial(predict, [picture]), partial(exported.predict, picture)
        )
        if isinstance(found, Detections):
            compare_objects(sample.pred_instances, found, cut, most, differences)
        else:
            labels = sample.pred_sem_seg.data[0].numpy()
            differences.meet('label maps (share of pixels)', (labels != found).mean())
    return differences


def compare_features(
    model: nn.Module, exported: ExportedModel, pictures: list[np.ndarray]
) -> Differences:
    """The same of the backbone alone."""

    def features_of(pixels: np.ndarray) -> tuple[Tensor, ...]:
        inputs = torch.from_numpy(pixels[0, ::-1].copy())  # blue first, as the preprocessor wants
        with torch.no_grad():
            return model.backbone(model.data_preprocessor(dict(inputs=[inputs]))['inputs'])

    differences = Differences()
    for picture in pictures:
        pixels, *_ = exported.prepare(picture)
        features, found = differences.both(
            partial(features_of, pixels), partial(exported.run, pixels)
        )
        for feature, other in zip(features, found.values(), strict=True):
            feature = feature.numpy()
            largest = np.abs(feature - other).max() / feature.std()
            differences.meet('features (standard deviations)', largest)
    return differences


def compare_objects(
    truth: InstanceData, found: Detections, cut: float, most: int, differences: Differences
) -> None:
    """Objects of one picture, matched one to one by class and place.

    What only one of them finds counts where its score is clearly above the one below which nothing
    is kept: ``cut``, or where ``most`` are kept the least score of these.
    """
    boxes, scores, labels = (getattr(truth, k).numpy() for k in ('bboxes', 'scores', 'labels'))
    masks = truth.masks.numpy() if found.masks is not None else None
    pasted = found.full_masks()
    least = max([cut, *(s.min() for s in (scores, found.scores) if len(s) >= most)])
    free = np.ones(len(found.scores), dtype=bool)
    wrong = inside = 0  # pixels of masks, of all objects together
    for i, box in enumerate(boxes):
        place = nearest(box, labels[i], found, free)
        if place is None:
            differences.alone += bool(scores[i] > least + SCORE)
            continue
        free[place] = False
        differences.objects += 1
        differences.meet('boxes (pixels)', np.abs(box - found.boxes[place]).max())
        differences.meet('scores', abs(scores[i] - found.scores[place]))
        if masks is not None:
            wrong += (masks[i] != pasted[place]).sum()
            inside += (masks[i] | pasted[place]).sum()
    if inside:
        differences.meet('masks (share of pixels)', wrong / inside)
    differences.alone += int((found.scores[free] > least + SCORE).sum())


def nearest(box: np.ndarray, label: int, found: Detections, free: np.ndarray) -> int | None:
    """Which of the free ones of that class overlaps most, by nine tenths at least."""
    (places,) = np.nonzero(free & (found.labels == label))
    if not len(places):
        return None
    others = found.boxes[places]
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    inside = np.maximum(sides, 0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    overlap = inside / np.maximum(areas - inside, 1e-9)
    best = int(overlap.argmax())
    return int(places[best]) if overlap[best] >= 0.9 else None
