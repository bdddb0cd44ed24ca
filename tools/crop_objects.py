#!/usr/bin/env python
"""Cut the objects of a COCO data set out by their boxes: a folder a class, for a classifier.

    python tools/crop_objects.py data/coco data/coco_crops --classes 10 --least-side 32

DATA holds train2017/, val2017/ and annotations/; OUT gets train/CLASS/ and val/CLASS/. A crop is a
square around the box, as far as the image goes. Crowds and smaller boxes are left out.
"""

import argparse
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import cv2
from coco_subset import read_coco
from support import cli

STAMP = 'crops.json'


def crop_objects(
    data: Path, out: Path, least_side: int = 16, margin: float = 0.1, classes: int | None = None
) -> Counter | None:
    """Write the crops unless they are there already; how many of each split and class.

    They are written beside ``out`` and moved there whole; a folder that is not of crops is never
    replaced.

    Args:
        least_side: pixels that the longer side of a box has at least.
        margin: share of that side that the crop goes beyond the box, on each side.
        classes: only so many classes, those with the most objects to train on.

    Raises:
        UserError: a file is missing or no image, or there is something else at ``out``.
    """
    files = {s: data / f'annotations/instances_{s}2017.json' for s in ('train', 'val')}
    content = {split: read_coco(path) for split, path in files.items()}
    made_of = dict(
        data=str(data.resolve()),
        options=[least_side, margin, classes],
        files=[[path.stat().st_size, path.stat().st_mtime_ns] for path in files.values()],
    )
    stamp = out / STAMP
    if stamp.is_file() and json.loads(stamp.read_text()) == made_of:
        return None
    if out.exists() and not stamp.is_file():
        raise cli.UserError(f'{out}: is there and holds no crops; name another folder')
    names = chosen_classes(content['train'], least_side, classes)
    fresh = out.with_name(f'{out.name}.{os.getpid()}')
    try:
        counts = Counter()
        for split, of_split in content.items():
            folder = data / f'{split}2017'
            counts += write_split(of_split, folder, fresh / split, names, least_side, margin)
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
        pixels = cv2.imread(str(images / image['file_name'])) if objects else None
        if objects and pixels is None:
            raise cli.UserError(f'{images / image["file_name"]}: no image that can be decoded')
        for a in objects:
            name = names[a['category_id']]
            top, bottom, left, right = square(a['bbox'], margin, pixels.shape)
            crop = pixels[top:bottom, left:right]
            if not crop.size:
                raise cli.UserError(f'{images.name}: annotation {a["id"]} lies outside its image')
            quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
            cv2.imwrite(str(out / name / f'{a["id"]}.jpg'), crop, quality)
            counts[out.name, name] += 1
    return counts


def square(box: list[float], margin: float, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of the square around a box (x, y, w, h), inside the image."""
    x, y, w, h = box
    half = max(w, h) * (0.5 + margin)
    top, bottom = (round(y + h / 2 + way * half) for way in (-1, 1))
    left, right = (round(x + w / 2 + way * half) for way in (-1, 1))
    return max(0, top), min(shape[0], bottom), max(0, left), min(shape[1], right)


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
    args = parser.parse_args()
    for name in ('least_side', 'classes'):
        if (value := getattr(args, name)) is not None and value < 1:
            raise cli.UserError(f'--{name.replace("_", "-")} {value}: give 1 or more')
    if not 0 <= args.margin <= 1:
        raise cli.UserError(f'--margin {args.margin}: give a share from 0 to 1')
    try:
        counts = crop_objects(args.data, args.out, args.least_side, args.margin, args.classes)
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
