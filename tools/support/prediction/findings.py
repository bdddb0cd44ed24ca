"""What is kept of a prediction: objects with their masks, shares of classes, label maps."""

import io
from typing import Any

import cv2
import numpy as np
from mmdet.structures.mask import encode_mask_results
from mmengine.structures import BaseDataElement
from PIL import Image

from support import cli


def shares(sample: BaseDataElement, classes: tuple[str, ...]) -> dict[str, float]:
    """The share of the pixels that each class has, of those that are found."""
    labels, counts = np.unique(labels_of(sample), return_counts=True)
    parts = counts / counts.sum()
    return {classes[i]: round(float(part), 4) for i, part in zip(labels, parts, strict=True)}


def objects(sample: BaseDataElement, score_thr: float, masks: bool) -> list[dict]:
    """Label, score, box (x1, y1, x2, y2) and, if asked for, mask of each object of that score.

    Raises:
        UserError: masks are asked for, and the model predicts none.
    """
    instances = sample.pred_instances
    if masks and 'masks' not in instances:
        raise cli.UserError('--masks: this model predicts boxes alone; leave the option out')
    instances = instances[instances.scores >= score_thr].cpu()
    found = [
        dict(label=label, score=score, box=box)
        for label, score, box in zip(
            instances.labels.tolist(),
            instances.scores.tolist(),
            instances.bboxes.tolist(),
            strict=True,
        )
    ]
    for each, mask in zip(found, run_lengths(instances.masks) if masks else (), strict=False):
        each['mask'] = mask
    return found


BEST = 5
"""How many classes of an image are told."""


def best_classes(sample: BaseDataElement) -> list[dict]:
    """Label and score of the most likely classes of an image, the best first."""
    scores, labels = sample.pred_score.topk(min(BEST, len(sample.pred_score)))
    pairs = zip(labels.tolist(), scores.tolist(), strict=True)
    return [dict(label=label, score=score) for label, score in pairs]


def named(found: list[dict], classes: tuple[str, ...]) -> list[dict]:
    """Objects, or classes of an image, as ``predictions.json`` has them."""
    return [
        {
            'class': classes[each['label']],
            'score': round(each['score'], 4),
            **({'box_xyxy': [round(x, 1) for x in each['box']]} if 'box' in each else {}),
            **({'mask': each['mask']} if 'mask' in each else {}),
        }
        for each in found
    ]


def run_lengths(masks: Any) -> list[dict]:
    """COCO's run-length code, ready for JSON, of masks (n, H, W) or of such code in bytes."""
    codes = masks if isinstance(masks, list) else encode_mask_results(masks.numpy())
    return [dict(size=list(c['size']), counts=c['counts'].decode('ascii')) for c in codes]


def labels_of(sample: BaseDataElement) -> np.ndarray:
    """The class of each pixel (H, W), counted from 0."""
    return sample.pred_sem_seg.data[0].cpu().numpy()


def label_map(sample: BaseDataElement, meta: dict) -> bytes:
    """A PNG of the labels, in the numbers of the data set's own label maps, with its palette.

    Where label 0 of those stands for what has no class (``reduce_zero_label``) classes begin at 1.
    The palette is left out where a byte is too short for the numbers.
    """
    first = int(bool(meta.get('reduce_zero_label')))
    labels = labels_of(sample) + first
    if len(meta['classes']) + first > 256:
        return cv2.imencode('.png', labels.astype(np.uint16))[1].tobytes()
    picture = Image.fromarray(labels.astype(np.uint8), mode='P')
    colours = [(0, 0, 0)] * first + list(meta['palette'])
    picture.putpalette([value for colour in colours for value in colour])
    content = io.BytesIO()
    picture.save(content, 'PNG')
    return content.getvalue()
