"""Data sets of a few small noise images in COCO's and ADE20K's formats, written in milliseconds."""

import json
from pathlib import Path

import cv2
import numpy as np

SIZES = [(96, 128), (128, 96), (96, 96), (80, 120)]
"""Height and width of the images of each split."""


def write_coco(root: Path, sizes: list[tuple[int, int]] = SIZES) -> Path:
    """A person and a car in every image, boxes and polygons, the same for train and val."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i, (height, width) in enumerate(sizes, start=1):
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for split in ('train2017', 'val2017'):
            write_image(root / split / f'{i:012}.jpg', picture)
        images.append(dict(id=i, file_name=f'{i:012}.jpg', height=height, width=width))
        for category, (x, y) in {1: (4, 6), 3: (width // 2, height // 3)}.items():
            w, h = width // 3, height // 2
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i,
                    category_id=category,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[corners],
                )
            )
    categories = [dict(id=i, name=name) for i, name in enumerate(coco_classes(), start=1)]
    content = dict(images=images, annotations=annotations, categories=categories)
    for split in ('train2017', 'val2017'):
        path = root / 'annotations' / f'instances_{split}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return root


def coco_classes() -> tuple[str, ...]:
    from mmdet.datasets import CocoDataset

    return CocoDataset.METAINFO['classes']


def write_ade(root: Path, sizes: list[tuple[int, int]] = SIZES) -> Path:
    """Labels 0 (other) to 3 in vertical stripes, the same for training and validation."""
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(sizes, start=1):
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        labels = np.broadcast_to(np.arange(width) * 4 // width, (height, width)).astype(np.uint8)
        for split in ('training', 'validation'):
            write_image(root / 'images' / split / f'{i:08}.jpg', picture)
            write_image(root / 'annotations' / split / f'{i:08}.png', labels)
    return root


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
