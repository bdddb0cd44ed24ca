"""One small data set in all formats: boxes at fractions of pixels, outlines, two images without."""

import json
from pathlib import Path

import cv2
import numpy as np

CLASSES = ['person', 'car']
SIZES = {'train': [(96, 128), (128, 96), (96, 96), (80, 120)], 'val': [(96, 128), (80, 120)]}
"""Height and width of the images of each split; the last of each has no object."""


def write_images(folder: Path, split: str) -> list[dict]:
    rng = np.random.default_rng(len(split))
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (height, width) in enumerate(SIZES[split], start=1):
        name = f'{split} {i}.jpg'
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        rows.append(dict(id=i, file_name=name, width=width, height=height))
    return rows


def outlines(split: str, image: dict) -> list[tuple[int, list[list[float]]]]:
    """Class and corners of the objects of an image."""
    if image['id'] == len(SIZES[split]):
        return []
    rng = np.random.default_rng((len(split), image['id']))
    found = []
    for label in range(len(CLASSES)):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radius = rng.uniform(8, 20, (9, 1))
        centre = rng.uniform(24, 60, 2)
        corners = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        found.append((label, corners.tolist()))
    return found


def box(corners: list[list[float]]) -> list[float]:
    """Left, top, right, bottom."""
    xs, ys = zip(*corners, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]


def write_coco(root: Path, masks: bool = True) -> Path:
    for split in SIZES:
        images, rows = write_images(root / split, split), []
        for image in images:
            for label, corners in outlines(split, image):
                left, top, right, bottom = box(corners)
                row = dict(
                    id=len(rows) + 1,
                    image_id=image['id'],
                    category_id=label + 1,
                    bbox=[left, top, right - left, bottom - top],
                    area=(right - left) * (bottom - top),
                    iscrowd=0,
                )
                flat = [number for corner in corners for number in corner]
                rows.append(row | dict(segmentation=[flat]) if masks else row)
        categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, start=1)]
        content = dict(images=images, annotations=rows, categories=categories)
        (root / f'{split}.json').write_text(json.dumps(content))
    return root


def write_boxes_alone(root: Path) -> Path:
    return write_coco(root, masks=False)


def write_yolo(root: Path, masks: bool = False) -> Path:
    """The last image has no label file in train, and an empty one in val."""
    for split in SIZES:
        labels = root / 'labels' / split
        labels.mkdir(parents=True)
        for image in write_images(root / 'images' / split, split):
            lines = []
            for label, corners in outlines(split, image):
                left, top, right, bottom = box(corners)
                numbers = [[(left + right) / 2, (top + bottom) / 2], [right - left, bottom - top]]
                parts = np.array(corners if masks else numbers)
                parts = parts / (image['width'], image['height'])
                lines.append(' '.join([str(label), *map(repr, parts.ravel().tolist())]))
            if lines or split == 'val':
                (labels / f'{Path(image["file_name"]).stem}.txt').write_text('\n'.join(lines))
    names = '\n'.join(f'  {i}: {name}' for i, name in enumerate(CLASSES))
    text = f'path: .\ntrain: images/train\nval: images/val\nnames:\n{names}\n'
    (root / 'data.yaml').write_text(text)
    return root


def write_yolo_masks(root: Path) -> Path:
    return write_yolo(root, masks=True)


def write_voc(root: Path) -> Path:
    for split in SIZES:
        for image in write_images(root / split, split):
            things = ''
            for label, corners in outlines(split, image):
                names = ('xmin', 'ymin', 'xmax', 'ymax')
                pairs = zip(names, box(corners), strict=True)
                inside = ''.join(f'<{name}>{value!r}</{name}>' for name, value in pairs)
                things += f'<object><name>{CLASSES[label]}</name><bndbox>{inside}</bndbox></object>'
            size = f'<width>{image["width"]}</width><height>{image["height"]}</height>'
            (root / split / f'{Path(image["file_name"]).stem}.xml').write_text(
                f'<annotation><filename>{image["file_name"]}</filename>'
                f'<size>{size}</size>{things}</annotation>'
            )
    return root


def write_labelme(root: Path) -> Path:
    for split in SIZES:
        for image in write_images(root / split, split):
            shapes = [
                dict(label=CLASSES[label], points=corners, shape_type='polygon', group_id=None)
                for label, corners in outlines(split, image)
            ]
            told = dict(
                version='5.5.0',
                flags={},
                shapes=shapes,
                imagePath=image['file_name'],
                imageData=None,
                imageHeight=image['height'],
                imageWidth=image['width'],
            )
            path = root / split / f'{Path(image["file_name"]).stem}.json'
            path.write_text(json.dumps(told))
    return root


def write_maps(root: Path, split: bool = True) -> Path:
    """Palette PNGs with the labels 0 to 2, and a border of 255."""
    from PIL import Image

    for name in SIZES:
        below = name if split else ''
        (root / 'masks' / below).mkdir(parents=True, exist_ok=True)
        for image in write_images(root / 'images' / below, name):
            labels = np.full((image['height'], image['width']), 255, np.uint8)
            stripes = np.arange(image['width'] - 4) * 3 // (image['width'] - 4)
            labels[2:-2, 2:-2] = stripes
            picture = Image.fromarray(labels)
            picture = Image.frombytes('P', picture.size, labels.tobytes())
            # of 256 colours: with fewer Pillow cuts the labels to as many bits
            picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [128] * 759)
            picture.save(root / 'masks' / below / f'{Path(image["file_name"]).stem}.png')
    return root
