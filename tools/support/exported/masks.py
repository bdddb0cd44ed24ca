"""From masks in their boxes to masks of the picture, as mmdet's FCNMaskHead does it."""

import numpy as np


def paste(
    masks: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> np.ndarray:
    """Masks of the picture.

    Args:
        masks: probabilities (N, h, w), stretched over the box.
        boxes: xyxy in pixels of the picture, (N, 4).
        threshold: least probability of a pixel of the mask.

    Returns:
        (N, height, width), bool.
    """
    pasted = np.zeros((len(masks), height, width), dtype=bool)
    for mask, box, whole in zip(masks, boxes, pasted, strict=True):
        left, top = np.maximum(np.floor(box[:2]).astype(int) - 1, 0)
        right, bottom = np.minimum(np.ceil(box[2:]).astype(int) + 1, (width, height))
        if right > left and bottom > top:
            rows = _weights(top, bottom, box[1], box[3], mask.shape[0])
            columns = _weights(left, right, box[0], box[2], mask.shape[1])
            whole[top:bottom, left:right] = rows @ mask @ columns.T >= threshold
    return pasted


def _weights(first: int, last: int, start: float, end: float, size: int) -> np.ndarray:
    """Bilinear interpolation along one axis, with zeros outside: (pixels, places of the mask)."""
    centres = np.arange(first, last, dtype=np.float32) + 0.5
    places = (centres - start) / max(end - start, 1e-6) * size - 0.5
    return np.maximum(1 - np.abs(places[:, None] - np.arange(size)), 0).astype(np.float32)
