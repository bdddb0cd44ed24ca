"""Large images in tiles: what is too small for a model in the whole image is not in a part of it.

A detector sees the whole image too, which shows what is larger than a tile. An object that a tile's
edge cuts is found whole elsewhere, in the tile beside it or in the whole image, and its part is
dropped. A segmentor's tiles are mmseg's own.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from mmcv.ops import batched_nms
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmdet.structures.mask import encode_mask_results
from mmengine.config import Config
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask

from support.prediction.model import Predict

SAME = 0.5
"""Two boxes of a class with a larger intersection over union are of one object."""
PART = 0.7
"""How much of a cut object's box lies inside the box of the whole object, at least."""
EDGE = 0.01
"""A box that ends so near to the edge of a tile, in sides of it, may be cut by that edge."""


def slide(cfg: Config, tile: int, overlap: float) -> None:
    """Let mmseg's segmentor go over images in tiles, at their own size instead of a resized one."""
    stride = max(1, round(tile * (1 - overlap)))
    cfg.model.test_cfg = dict(mode='slide', crop_size=(tile, tile), stride=(stride, stride))
    data = cfg.test_dataloader.dataset
    data.pipeline = [step for step in data.pipeline if step.type != 'Resize']


def tiled(
    predict: Predict,
    tile: int,
    overlap: float,
    batch_size: int = 1,
    score_thr: float = 0.0,
    tell: Callable[[str], None] = print,
) -> Predict:
    """A detector's ``predict`` for images of any size, whose masks are in run-length code.

    Args:
        tile: side of a tile, in pixels of the image.
        overlap: least share of a tile that lies in the next one too. An object that is smaller, and
            found in tiles alone, is whole in one of them.
        score_thr: objects of a lower score are dropped at once.
    """

    def predict_one(picture: np.ndarray) -> DetDataSample:
        (whole,) = predict([picture])
        height, width = picture.shape[:2]
        if max(height, width) <= tile:
            return whole
        parts = [_part(whole, (0, 0), picture, picture, score_thr)]
        corners = list(product(starts(height, tile, overlap), starts(width, tile, overlap)))
        for begin in range(0, len(corners), batch_size):
            tell(f'    tile {begin + 1} of {len(corners)}')
            some = corners[begin : begin + batch_size]
            crops = [picture[y : y + tile, x : x + tile] for y, x in some]
            for sample, corner, crop in zip(predict(crops), some, crops, strict=True):
                parts.append(_part(sample, corner, crop, picture, score_thr))
        sample = whole.clone()
        sample.pred_instances = merged(parts, picture.shape)
        return sample

    return lambda pictures: [predict_one(picture) for picture in pictures]


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin that cover ``length`` evenly, overlapping by that share or more."""
    number = 1 + max(0, int(np.ceil((length - tile) / (tile * (1 - overlap)))))
    return np.linspace(0, max(0, length - tile), number).astype(int).tolist()


def _part(
    sample: DetDataSample,
    corner: tuple[int, int],
    crop: np.ndarray,
    picture: np.ndarray,
    score_thr: float,
) -> InstanceData:
    """What is found in a crop, in coordinates of the picture; masks stay the crop's, in code.

    ``cut`` says which objects may go on outside the crop.
    """
    found = sample.pred_instances
    found = found[found.scores >= score_thr].cpu()
    (top, left), (height, width) = corner, crop.shape[:2]
    boxes = found.bboxes.float()
    near = EDGE * max(height, width)
    cut = torch.zeros(len(boxes), dtype=torch.bool)
    if left > 0:
        cut |= boxes[:, 0] < near
    if top > 0:
        cut |= boxes[:, 1] < near
    if left + width < picture.shape[1]:
        cut |= boxes[:, 2] > width - near
    if top + height < picture.shape[0]:
        cut |= boxes[:, 3] > height - near
    part = InstanceData(
        bboxes=boxes + boxes.new_tensor([left, top, left, top]),
        labels=found.labels,
        scores=found.scores.float(),
        cut=cut,
    )
    if 'masks' in found:
        part.masks = [(corner, code) for code in encode_mask_results(found.masks.numpy())]
    return part


def merged(parts: list[InstanceData], shape: tuple[int, ...]) -> InstanceData:
    """Each object of the parts once, the most certain first, masks as of the whole image."""
    found = InstanceData.cat(parts)
    if len(found):  # batched_nms wants a box
        whole_first = found.scores + ~found.cut
        kept = batched_nms(found.bboxes, whole_first, found.labels, dict(iou_threshold=SAME))[1]
        found = found[kept]
    whole = found[~found.cut]
    inside = bbox_overlaps(found.bboxes, whole.bboxes, mode='iof') > PART
    of_one_class = found.labels[:, None] == whole.labels
    found = found[~(found.cut & (inside & of_one_class).any(dim=1))]
    found = found[found.scores.argsort(descending=True)]
    if 'masks' in found:
        canvas = np.zeros(shape[:2], np.uint8, order='F')
        found.masks = [_on(canvas, *mask) for mask in found.masks]
    del found.cut
    return found


def _on(canvas: np.ndarray, corner: tuple[int, int], code: dict) -> dict:
    """The code of a crop's mask on an empty canvas of the image's size, which stays empty."""
    y, x = corner
    height, width = code['size']
    place = canvas[y : y + height, x : x + width]
    place[:] = coco_mask.decode(code)
    moved = coco_mask.encode(canvas)
    place[:] = 0
    return moved
