#!/usr/bin/env python
"""Cut the objects of a COCO data set out by their boxes: a folder a class, for a classifier.

    python tools/crop_objects.py data/coco data/coco_crops --classes 10 --least-side 32

DATA holds train2017/, val2017/ and annotations/; OUT gets train/CLASS/ and val/CLASS/. A crop is a
square around the box, grey where it goes beyond the image. Crowds and smaller boxes are left
out. With --background there is a class more, of crops that show no object whole: a part of one or
one among much else, and places beside them. Who tells these apart has learned where objects end.
"""

import argparse
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from coco_subset import read_coco
from support import cli

STAMP = 'crops.json'
BACKGROUND = 'background'
PART, BESIDE = (0.08, 0.35), 0.2
"""Overlap (IoU) of a crop's box with objects: of a part, its largest; beside them, each less."""
TRIES = 20
BEYOND = (104, 116, 124)
"""Blue, green, red beyond the image: ImageNet's mean, so zero once normalised, as what a detector's
convolutions see there."""


def crop_objects(
    data: Path,
    out: Path,
    least_side: int = 16,
    margin: float = 0.1,
    classes: int | None = None,
    background: bool = False,
) -> Counter | None:
    """Write the crops unless they are there already; how many of each split and class.

    They are written beside ``out`` and moved there whole; a folder that is not of crops is never
    replaced.

    Args:
        least_side: pixels that the longer side of a box has at least.
        margin: share of that side that the crop goes beyond the box, on each side.
        classes: only so many classes, those with the most objects to train on.
        background: a class more, of a crop for every two objects and one an image, that show none
            whole.

    Raises:
        UserError: a file is missing or no image, there is something else at ``out``, or a class is
            called as that of the background.
    """
    files = {s: data / f'annotations/instances_{s}2017.json' for s in ('train', 'val')}
    content = {split: read_coco(path) for split, path in files.items()}
    made_of = dict(
        data=str(data.resolve()),
        options=[least_side, margin, classes, background],
        files=[[path.stat().st_size, path.stat().st_mtime_ns] for path in files.values()],
    )
    stamp = out / STAMP
    if stamp.is_file() and json.loads(stamp.read_text()) == made_of:
        return None
    if out.exists() and not stamp.is_file():
        raise cli.UserError(f'{out}: is there and holds no crops; name another folder')
    names = chosen_classes(content['train'], least_side, classes)
    if background and BACKGROUND in names.values():
        raise cli.UserError(f'{data}: a class is called {BACKGROUND}; leave out --background')
    fresh = out.with_name(f'{out.name}.{os.getpid()}')
    try:
        counts = Counter()
        for split, of_split in content.items():
            folder = data / f'{split}2017'
            crops = write_split(of_split, folder, fresh / split, names, least_side, margin)
            if background:
                crops += write_background(of_split, folder, fresh / split, least_side, margin)
            counts += crops
        (fresh / STAMP).write_text(json.dumps(made_of))
        if out.exists():
            shutil.rmtree(out)
        os.replace(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return counts


def usable(content: dict, least_side: int) -> list[dict]:
    """The annotations that are cut out."""
    return [
        a
        for a in content['annotations']
        if not a.get('iscrowd') and not a.get('ignore') and max(a['bbox'][2:]) >= least_side
    ]


def chosen_classes(content: dict, least_side: int, most: int | None) -> dict[int, str]:
    """Folders of the classes by their ids, those with the most objects."""
    counts = Counter(a['category_id'] for a in usable(content, least_side))
    names = {c['id']: re.sub(r'\W+', '_', c['name']) for c in content['categories']}
    return {number: names[number] for number, _ in counts.most_common(most)}


def write_split(
    content: dict, images: Path, out: Path, names: dict[int, str], least_side: int, margin: float
) -> Counter:
    """Write the crops of a split; how many of each class, as {(split, class): number}."""
    for name in names.values():  # the same ones for all splits
        (out / name).mkdir(parents=True)
    by_image: dict[int, list[dict]] = {}
    for a in usable(content, least_side):
        if a['category_id'] in names:
            by_image.setdefault(a['image_id'], []).append(a)
    counts: Counter = Counter()
    for image in content['images']:
        objects = by_image.get(image['id'], ())
        pixels = read(images / image['file_name']) if objects else None
        for a in objects:
            name = names[a['category_id']]
            if not write(pixels, a['bbox'], margin, out / name / f'{a["id"]}.jpg'):
                raise cli.UserError(f'{images.name}: annotation {a["id"]} lies outside its image')
            counts[out.name, name] += 1
    return counts


def write_background(
    content: dict, images: Path, out: Path, least_side: int, margin: float
) -> Counter:
    """Write crops that show no object whole; how many, as {(split, class): number}."""
    (out / BACKGROUND).mkdir()
    by_image: dict[int, list[dict]] = {}
    for a in content['annotations']:
        by_image.setdefault(a['image_id'], []).append(a)
    usable_ids = {a['id'] for a in usable(content, least_side)}
    count = 0
    for image in content['images']:
        rng = np.random.RandomState(image['id'] % 2**32)  # the same ones every time
        annotations = by_image.get(image['id'], ())
        boxes = [a['bbox'] for a in annotations]
        objects = [a['bbox'] for a in annotations if a['id'] in usable_ids]
        pixels = read(images / image['file_name'])
        found = [part_of(box, boxes, pixels.shape, rng) for box in objects[::2]]
        found.append(place_beside(boxes, least_side, pixels.shape, rng))
        for box in filter(None, found):
            count += write(pixels, box, margin, out / BACKGROUND / f'{count}.jpg')
    return Counter({(out.name, BACKGROUND): count})


def part_of(
    box: list[float], boxes: list[list[float]], shape: tuple[int, ...], rng: np.random.RandomState
) -> list[float] | None:
    """A box (x, y, w, h) moved and scaled until it shows this one in part and no other whole.

    None where none is found.
    """
    x, y, w, h = box
    for _ in range(TRIES):
        scale = np.exp(rng.uniform(-1, 1))
        right, down = rng.uniform(-0.7, 0.7, 2) * max(w, h)
        moved = [
            x + right + w * (1 - scale) / 2, y + down + h * (1 - scale) / 2, w * scale, h * scale
        ]  # fmt: skip
        middle = moved[0] + moved[2] / 2, moved[1] + moved[3] / 2
        inside = 0 < middle[0] < shape[1] and 0 < middle[1] < shape[0]
        if inside and PART[0] < max(overlap(moved, b) for b in boxes) < PART[1]:
            return moved
    return None


def place_beside(
    boxes: list[list[float]], least_side: int, shape: tuple[int, ...], rng: np.random.RandomState
) -> list[float] | None:
    """A square inside the image that shows next to nothing of the objects, where one is found."""
    most = min(shape[:2])
    if least_side > most:
        return None
    for _ in range(TRIES):
        side = np.exp(rng.uniform(np.log(least_side), np.log(most)))
        square = [rng.uniform(0, shape[1] - side), rng.uniform(0, shape[0] - side), side, side]
        if all(overlap(square, box) < BESIDE for box in boxes):
            return square
    return None


def overlap(one: list[float], other: list[float]) -> float:
    """Intersection over union of two boxes (x, y, w, h)."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    both = max(0, width) * max(0, height)
    union = one[2] * one[3] + other[2] * other[3] - both
    return both / union if union > 0 else 0.0


def read(path: Path) -> np.ndarray:
    """The pixels (H, W, 3)."""
    pixels = cv2.imread(str(path))
    if pixels is None:
        raise cli.UserError(f'{path}: no image that can be decoded')
    return pixels


def write(pixels: np.ndarray, box: list[float], margin: float, path: Path) -> bool:
    """Write the square around a box as a JPEG; False where none of it lies in the image."""
    top, bottom, left, right = square(box, margin)
    height, width = pixels.shape[:2]
    inside = pixels[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    if not inside.size:
        return False
    beyond = (max(0, n) for n in (-top, bottom - height, -left, right - width))
    crop = cv2.copyMakeBorder(inside, *beyond, cv2.BORDER_CONSTANT, value=BEYOND)
    return cv2.imwrite(str(path), crop, [cv2.IMWRITE_JPEG_QUALITY, 95])


def square(box: list[float], margin: float) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of the square around a box (x, y, w, h)."""
    x, y, w, h = box
    half = max(w, h) * (0.5 + margin)
    top, left = round(y + h / 2 - half), round(x + w / 2 - half)
    side = max(1, round(2 * half))
    return top, top + side, left, left + side


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('data', type=Path, help='a directory in the layout of COCO')
    parser.add_argument('out', type=Path, help='folder to make')
    parser.add_argument('--least-side', type=int, default=16, help='pixels of a box (16)')
    parser.add_argument(
        '--margin', type=float, default=0.1, help='share of the box around it (0.1)'
    )
    parser.add_argument('--classes', type=int, help='only so many, the most frequent (all)')
    parser.add_argument(
        '--background', action='store_true', help='a class more: crops that show no object whole'
    )
    args = parser.parse_args()
    for name in ('least_side', 'classes'):
        if (value := getattr(args, name)) is not None and value < 1:
            raise cli.UserError(f'--{name.replace("_", "-")} {value}: give 1 or more')
    if not 0 <= args.margin <= 1:
        raise cli.UserError(f'--margin {args.margin}: give a share from 0 to 1')
    try:
        counts = crop_objects(
            args.data, args.out, args.least_side, args.margin, args.classes, args.background
        )
    except OSError as error:
        raise cli.UserError(f'{error.filename}: {error.strerror}') from error
    if counts is None:
        print(f'{args.out}: already there')
        return
    for split in ('train', 'val'):
        of_split = {name: n for (where, name), n in counts.items() if where == split}
        listed = ', '.join(f'{name} {n}' for name, n in of_split.items())
        print(f'{args.out / split}: {sum(of_split.values())} crops ({listed})')


if __name__ == '__main__':
    cli.run(main)
