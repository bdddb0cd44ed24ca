"""The parts of a detector written for a graph of any image size: the values are mmdet's.

mmdet's own post-processing branches by what the numbers are, which a graph cannot. The names below
are those of mmdet's modules; what they compute is named in each docstring.
"""

import numpy as np
import torch
import torch.nn.functional as F
from support.exporting import ops
from torch import Tensor, nn


class Anchors(nn.Module):
    """mmdet's AnchorGenerator of one level: xyxy (H * W * A, 4)."""

    def __init__(self, base: Tensor, stride: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride  # in x and y
        self.register_buffer('base', base)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[2:]
        xs = torch.arange(W, dtype=torch.float32) * self.stride[0]
        ys = torch.arange(H, dtype=torch.float32) * self.stride[1]
        xs, ys = xs[None, :].expand(H, W), ys[:, None].expand(H, W)
        shifts = torch.stack((xs, ys, xs, ys), dim=-1).reshape(-1, 1, 4)
        return (shifts + self.base).reshape(-1, 4)


class Decode(nn.Module):
    """mmdet's DeltaXYWHBBoxCoder: boxes (..., 4) moved by deltas (..., 4), cut at the edges."""

    def __init__(self, coder: nn.Module) -> None:
        super().__init__()
        self.max_ratio = float(np.abs(np.log(16 / 1000)))
        self.clip = coder.clip_border
        self.register_buffer('means', torch.tensor(coder.means))
        self.register_buffer('stds', torch.tensor(coder.stds))

    def forward(self, boxes: Tensor, deltas: Tensor, limits: Tensor) -> Tensor:
        deltas = deltas * self.stds + self.means
        centres = (boxes[..., :2] + boxes[..., 2:]) * 0.5
        sides = boxes[..., 2:] - boxes[..., :2]
        centres = centres + sides * deltas[..., :2]
        sides = sides * deltas[..., 2:].clamp(-self.max_ratio, self.max_ratio).exp()
        boxes = torch.cat((centres - sides * 0.5, centres + sides * 0.5), dim=-1)
        return within(boxes, limits) if self.clip else boxes


def within(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes (..., 4) cut at the edges of an image of ``limits`` W, H, W, H."""
    return torch.minimum(boxes.clamp(min=0), limits)


def separate_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, most: int
) -> Tensor:
    """mmcv's ``batched_nms``: NMS inside each group, by moving the groups apart; (K,) places."""
    offset = groups.to(boxes.dtype) * (boxes.max() + 1)
    return ops.nms(boxes + offset[:, None], scores, iou_threshold, most)


class Enlarge(nn.Module):
    """mmseg's ``Upsample`` by a whole number; its own fixes the size that is traced."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.factor = int(like.scale_factor)
        self.options = dict(mode=like.mode, align_corners=like.align_corners)

    def forward(self, x: Tensor) -> Tensor:
        size = [side * self.factor for side in x.shape[2:]]
        return F.interpolate(x, size=size, **self.options)


class AdaptivePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` for images of any size: a product with averages on either side."""

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, size, size)."""
        rows, columns = (averages(n, s) for n, s in zip(x.shape[2:], self.size, strict=True))
        return rows @ x @ columns.T


def averages(length: int, parts: int) -> Tensor:
    """Each row averages one of ``parts`` overlapping parts of a line, (parts, length)."""
    i = torch.arange(parts)[:, None]
    start, end = i * length // parts, ((i + 1) * length + parts - 1) // parts
    place = torch.arange(length)
    inside = ((place >= start) & (place < end)).float()
    return inside / (end - start)
