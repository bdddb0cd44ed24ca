"""Data as labelme has it: a JSON file an image.

Its shapes are the polygons of COCO's JSON, so they are taken as they are. The converters that there
are round them to whole pixels, or bring packages that are larger than this project.
"""

import json
import math
import re
from collections import Counter, defaultdict
from pathlib import Path, PureWindowsPath

from PIL import Image

from support.checks.dataset import reason_of
from support.cli import UserError
from support.own_data.coco import split_of
from support.own_data.content import Object, Picture, Polygon, content
from support.own_data.found import Found, Objects

CORNERS = {'polygon': 3, 'rectangle': 2, 'circle': 2}
"""The shapes that are objects, and how many points they have at least."""

ROUND = 32
"""Corners of the polygon that a circle becomes."""


def is_labelme(path: Path) -> bool:
    """Whether a JSON file is labelme's, by its beginning."""
    with open(path, 'rb') as file:
        head = file.read(2**16)
    return re.search(rb'"shapes"\s*:\s*\[', head) is not None


def find(root: Path) -> dict[str, list[Path]]:
    """The JSON files in a folder and two levels below it, by split."""
    found = defaultdict(list)
    for pattern in ('*.json', '*/*.json', '*/*/*.json'):
        for path in sorted(root.glob(pattern)):
            if path.is_file() and is_labelme(path):
                found[split_of(path.parent, root)].append(path)
    return dict(found)


def read(files: dict[str, list[Path]], root: Path, images: Path | None) -> Found:
    """Read files by split.

    Raises:
        UserError: a file is malformed, with the shape; or its image is not there.
    """
    files = {split: paths for split, paths in files.items() if split != 'test'}
    told = {path: _load(path) for paths in files.values() for path in paths}
    skipped = Counter(
        str(shape.get('shape_type'))
        for content in told.values()
        for shape in content['shapes']
        if shape.get('shape_type') not in CORNERS
    )
    classes = sorted(
        {shape['label'] for path, content in told.items() for shape in _shapes(path, content)}
    )
    if not classes:
        raise UserError(f'{root}: has labelme files without a polygon, rectangle or circle')
    outlined = any(
        shape['shape_type'] != 'rectangle' for p, c in told.items() for shape in _shapes(p, c)
    )
    splits = {}
    for split, paths in files.items():
        pictures = [
            _picture(path, told[path], classes, outlined, images or path.parent, images or root)
            for path in paths
        ]
        splits[split] = Objects(content(classes, pictures), images or root)
    if len(splits) == 1:
        splits = {'all': splits.popitem()[1]}
    notes = tuple(f'{n} shapes of type {kind} are left out' for kind, n in skipped.items())
    return Found('labelme', root, classes, splits, ordered=False, notes=notes)


def _load(path: Path) -> dict:
    try:
        told = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: not JSON: {reason_of(error)}') from error
    if not isinstance(told, dict) or not isinstance(told.get('shapes'), list):
        raise UserError(f'{path}: no labelme file: it has no list "shapes"')
    if not isinstance(told.get('imagePath'), str) or not told['imagePath']:
        raise UserError(f'{path}: no labelme file: it has no imagePath')
    for i, shape in enumerate(told['shapes']):
        if not isinstance(shape, dict):
            raise UserError(f'{path}: shapes[{i}] is no object')
    return told


def _shapes(path: Path, told: dict) -> list[dict]:
    """The shapes that are objects, each with its label and its points."""
    found = []
    for i, shape in enumerate(told['shapes']):
        kind = shape.get('shape_type')
        if kind not in CORNERS:
            continue
        label, points = shape.get('label'), shape.get('points')
        if not isinstance(label, str) or not label:
            raise UserError(f'{path}: shapes[{i}] has no label')
        if not _are_points(points) or len(points) < CORNERS[kind]:
            raise UserError(
                f'{path}: shapes[{i}] ({label}): a {kind} must have {CORNERS[kind]} points or '
                'more, of two numbers each'
            )
        found.append(shape)
    return found


def _are_points(points: object) -> bool:
    return isinstance(points, list) and all(
        isinstance(point, list)
        and len(point) == 2
        and all(type(c) in (int, float) and math.isfinite(c) for c in point)
        for point in points
    )


def _picture(
    path: Path, told: dict, classes: list[str], outlined: bool, folder: Path, root: Path
) -> Picture:
    name = PureWindowsPath(told['imagePath']).name  # labelme on Windows writes its own separator
    image = folder / name
    if not image.is_file():
        hint = '; --images names another folder'
        if told.get('imageData'):
            hint = '; it is inside the JSON, and must be a file'
        raise UserError(f'{path}: its image {image} is not there{hint}')
    size = told.get('imageWidth'), told.get('imageHeight')
    if not all(type(side) is int and side > 0 for side in size):
        try:
            with Image.open(image) as opened:
                size = opened.size
        except OSError as error:
            raise UserError(f'{image}: no image that can be decoded') from error
    # parts of one object share a group
    parts: dict[object, list[dict]] = defaultdict(list)
    for i, shape in enumerate(_shapes(path, told)):
        group = shape.get('group_id')
        parts[i if group is None else (shape['label'], str(group))].append(shape)
    things = []
    for shapes in parts.values():
        thing = Object.of_polygons(classes.index(shapes[0]['label']), list(map(_polygon, shapes)))
        things.append(thing if outlined else Object(thing.label, thing.box))
    return Picture(image.relative_to(root).as_posix(), *size, things)


def _polygon(shape: dict) -> Polygon:
    points = [(float(x), float(y)) for x, y in shape['points']]
    if shape['shape_type'] == 'polygon':
        return points
    if shape['shape_type'] == 'rectangle':  # two corners, of some programs all four
        (x, u), (y, v) = ((min(c), max(c)) for c in zip(*points, strict=True))
        return [(x, y), (u, y), (u, v), (x, v)]
    (x, y), (u, v) = points[:2]
    radius = math.hypot(u - x, v - y)
    turns = [2 * math.pi * i / ROUND for i in range(ROUND)]
    return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
