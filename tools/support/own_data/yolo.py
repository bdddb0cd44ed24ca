"""Data as YOLO has it: data.yaml, a folder of images and one of labels a split.

labelformat reads it, once each line is known to be right: it passes over what it does not
understand.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from support.checks.dataset import reason_of, some
from support.cli import UserError
from support.own_data.content import Object, Picture, content
from support.own_data.found import Found, Objects
from support.own_data.needs import labelformat

SPLITS = {'train': ('train',), 'val': ('val', 'valid', 'validation')}
"""The keys by which data.yaml names the images of a split."""

FARTHEST = 1.01
"""Parts of the image: what lies further out is no rounding."""


def read(file: Path) -> Found:
    """Read the data set that a data.yaml describes.

    Raises:
        UserError: it or a label file is malformed, with the line; or an image does not open.
    """
    classes, keys, folders = _description(file)
    places = {split: _places(file, key, folders[split]) for split, key in keys.items()}
    polygons = _has_polygons([path for _, labels in places.values() for path in _texts(labels)])
    if len(set(places.values())) < len(places):  # val: the images of train
        del places['val']
    splits = {}
    for split, (images, labels) in places.items():
        for path in _texts(labels):
            _check(path, len(classes), polygons)
        pictures = sorted(_pictures(file, keys[split], labels, polygons), key=lambda p: p.name)
        if not pictures:
            raise UserError(f'{file}: {keys[split]}: no image in {images}')
        splits[split] = Objects(content(classes, pictures), images)
    if len(splits) == 1:
        splits = {'all': splits.popitem()[1]}
    return Found('YOLO', file.parent, classes, splits)


def _description(file: Path) -> tuple[list[str], dict[str, str], dict[str, object]]:
    """The classes, and by split its key and what the file says there."""
    try:
        told = yaml.safe_load(file.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f'{file}: no YAML file that can be read: {reason_of(error)}') from error
    names = told.get('names') if isinstance(told, dict) else None
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            keys = some(list(names))
            raise UserError(f'{file}: names has the keys {keys}; number them 0, 1, ...')
        names = [names[i] for i in range(len(names))]
    if not names or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise UserError(f'{file}: names must be a list of the classes: names: [cat, dog]')
    keys = {
        split: next((key for key in known if told.get(key)), None)
        for split, known in SPLITS.items()
    }
    if not keys['train']:
        raise UserError(f'{file}: has no train; it must name the folder of the images')
    keys = {split: key for split, key in keys.items() if key}
    return names, keys, {split: told[key] for split, key in keys.items()}


def _places(file: Path, key: str, told: object) -> tuple[Path, Path]:
    """The folders of images and of labels, as labelformat finds them."""
    if not isinstance(told, str) or told.endswith('.txt'):
        raise UserError(f'{file}: {key}: {told}: must be one folder of images')
    reader = labelformat('yolov8').YOLOv8ObjectDetectionInput(file, key)
    images = reader._images_dir()
    if not images.is_dir():
        raise UserError(f'{file}: {key}: {images}: no such folder')
    try:
        labels = reader._labels_dir()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f'{file}: {key}: {images}: the path of the images must have a part "images", in the '
            'place of which the labels have "labels"'
        ) from error
    if not labels.is_dir():
        raise UserError(f'{file}: {key}: {labels}: no such folder, where the labels should be')
    return Path(os.path.abspath(images)), Path(os.path.abspath(labels))


def _texts(labels: Path) -> list[Path]:
    return sorted(path for path in labels.rglob('*.txt') if path.name != 'classes.txt')


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The numbers and words of a label file's lines that are not empty."""
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path}: no label file: {reason_of(error)}') from error
    for number, line in enumerate(text.splitlines(), start=1):
        if words := line.split():
            yield number, words


def _has_polygons(paths: list[Path]) -> bool:
    """Whether the first line that there is describes a polygon."""
    return next((len(words) > 5 for path in paths for _, words in _lines(path)), False)


def _check(path: Path, classes: int, polygons: bool) -> None:
    """Refuse the first line of a label file that is not right."""
    for number, words in _lines(path):
        where = f'{path}: line {number}'
        if not words[0].isdigit() or int(words[0]) >= classes:
            raise UserError(
                f'{where}: begins with {words[0]!r}; it must be the number of a class, '
                f'0 to {classes - 1}'
            )
        fits = len(words) >= 7 and len(words) % 2 if polygons else len(words) == 5
        if not fits:
            must = 'x and y of three corners or more' if polygons else 'x, y, width, height'
            raise UserError(
                f'{where}: has {len(words) - 1} numbers after the class; as in the first label '
                f'file it must have {must}'
            )
        try:
            values = [float(word) for word in words[1:]]
        except ValueError as error:
            raise UserError(f'{where}: {error}') from error
        if not all(1 - FARTHEST <= value <= FARTHEST for value in values):
            strange = next(v for v in values if not 1 - FARTHEST <= v <= FARTHEST)
            raise UserError(
                f'{where}: has the number {strange:g}; all must be parts of the image, from 0 to 1'
            )
        if not polygons and min(values[2:]) < 0:
            raise UserError(f'{where}: has a negative width or height')


def _pictures(file: Path, key: str, labels: Path, polygons: bool) -> Iterator[Picture]:
    """All images, those without a label file as without objects."""
    formats = labelformat('yolov8')
    kind = (
        formats.YOLOv8InstanceSegmentationInput if polygons else formats.YOLOv8ObjectDetectionInput
    )

    class Labelled(kind):  # what has no label file is passed over by one and ends the other
        def get_images(self) -> Iterator:
            return (i for i in super().get_images() if _label_of(labels, i.filename).is_file())

    try:
        for found in Labelled(file, key).get_labels():
            things = [_object(thing, polygons) for thing in found.objects]
            yield Picture(found.image.filename, found.image.width, found.image.height, things)
        for image in kind(file, key).get_images():
            if not _label_of(labels, image.filename).is_file():
                yield Picture(image.filename, image.width, image.height, [])
    except (ValueError, OSError) as error:
        raise UserError(f'{file}: {key}: {reason_of(error)}') from error
    except Exception as error:
        if path := getattr(error, 'path', None):
            raise UserError(f'{path}: no image that can be decoded') from error
        raise


def _label_of(labels: Path, image: str) -> Path:
    return (labels / image).with_suffix('.txt')


def _object(thing: object, polygons: bool) -> Object:
    if polygons:
        outlines = [list(polygon) for polygon in thing.segmentation.polygons]
        return Object.of_polygons(thing.category.id, outlines)
    box = thing.box
    return Object(thing.category.id, (box.xmin, box.ymin, box.xmax, box.ymax))
