"""Data for segmentation: a folder of images and one of label maps, index or palette PNG."""

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from support.checks.dataset import reason_of, some
from support.cli import UserError
from support.own_data.coco import split_of
from support.own_data.found import Found, Maps

IMAGES = ('images', 'image', 'imgs', 'img', 'jpegimages', 'photos', 'pictures')
MAPS = (
    'masks', 'mask', 'annotations', 'labels', 'label', 'label_maps', 'labelmaps', 'maps', 'gt',
    'segmentation', 'segmentationclass', 'segmentations', 'annotation',
)  # fmt: skip
"""What the two folders are called, in lower case."""

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
NAMES = ('classes.txt', 'labels.txt', 'names.txt', 'class_names.txt')
"""Files that name the classes, one a line, in the order of their numbers."""

IGNORED = 255
"""The label that stands for no class."""

Pair = tuple[Path, Path]


def find(root: Path) -> dict[str, Pair]:
    """The folders of images and of label maps, by split.

    ``images/`` and ``masks/`` lie side by side; the split is below both, above both, or nowhere.
    """
    found: dict[str, Pair] = {}
    for place in (root, *_folders(root), *(inner for f in _folders(root) for inner in _folders(f))):
        below = {folder.name.lower(): folder for folder in _folders(place)}
        images = next((below[name] for name in IMAGES if name in below), None)
        maps = next(
            (below[name] for name in MAPS if name in below and _has_maps(below[name])), None
        )
        if images and maps:
            above = split_of(place, root) if place != root else 'all'
            for split, pair in _by_split(images, maps).items():
                found.setdefault(split if split != 'all' else above, pair)
    found.pop('test', None)
    return found


def _folders(place: Path) -> list[Path]:
    return sorted(folder for folder in place.glob('*/') if folder.is_dir())


def _has_maps(folder: Path) -> bool:
    return next(folder.rglob('*.png'), None) is not None


def _by_split(images: Path, maps: Path) -> dict[str, Pair]:
    """The folders of splits inside the two, or the two themselves."""
    inside = {split_of(folder, images): folder for folder in _folders(images)}
    others = {split_of(folder, maps): folder for folder in _folders(maps)}
    pairs = {s: (inside[s], others[s]) for s in inside if s != 'all' and s in others}
    return pairs or {'all': (images, maps)}


def read(pairs: dict[str, Pair], root: Path, wanted: list[str] | None) -> Found:
    """Read the label maps of splits.

    Args:
        wanted: the names of the classes, in the order of their numbers.

    Raises:
        UserError: an image and its map do not belong together, or a map is none.
    """
    splits, notes = {}, []
    for split, (images, maps) in pairs.items():
        splits[split], lonely = _read_split(images, maps)
        if lonely:
            notes.append(f'{lonely} images in {images} have no label map: left out')
    if len(splits) == 1:
        splits = {'all': splits.popitem()[1]}
    used = set().union(*(labels for split in splits.values() for labels in split.labels))
    classes, note = _classes(used - {IGNORED}, root, wanted)
    return Found('label maps', root, classes, splits, notes=(*notes, *note))


def _read_split(images: Path, maps: Path) -> tuple[Maps, int]:
    """A split, and how many images have no label map."""
    paths = sorted(p for p in images.rglob('*') if p.suffix.lower() in SUFFIXES)
    suffixes = Counter(path.suffix for path in paths)
    if not paths:
        raise UserError(f'{images}: has no images')
    if len(suffixes) > 1:
        few = suffixes.most_common()[-1][0]
        raise UserError(
            f'{images}: has images that end in {some(sorted(suffixes))}, and mmseg takes one '
            f'ending a data set; make one of them, or move those in {few} away'
        )
    (suffix,) = suffixes
    names = [path.relative_to(images).as_posix().removesuffix(suffix) for path in paths]
    ending = _ending(maps, names)
    mapped = [name for name in names if (maps / (name + ending)).is_file()]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        read = list(threads.map(_labels, (maps / (name + ending) for name in mapped)))
    labels, shapes = ([one[i] for one in read] for i in (0, 1))
    lonely = len(names) - len(mapped)
    return Maps(images, maps, mapped, (suffix, ending), labels, shapes, whole=not lonely), lonely


def _ending(maps: Path, names: list[str]) -> str:
    """What follows the name of an image in that of its label map: ``.png``, ``_mask.png``."""
    for name in names:
        place = (maps / name).parent
        if (maps / f'{name}.png').is_file():
            return '.png'
        stem = Path(name).name
        beside = sorted(p.name for p in place.glob('*.png') if p.name.startswith(stem))
        if beside:
            return beside[0].removeprefix(stem)
    raise UserError(f'{maps}: has no label map for any image; {names[0]}.png would be one')


def _labels(path: Path) -> tuple[Counter, tuple[int, int]]:
    """How many pixels each label has, and width and height."""
    try:
        with Image.open(path) as image:
            labels = np.asarray(image)  # of a palette the indices
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: no label map that can be decoded: {reason_of(error)}') from error
    if labels.ndim != 2:
        raise UserError(
            f'{path}: an image of {labels.shape[-1]} channels, not a label map; it must have one '
            'channel or a palette, whose values are the numbers of the classes'
        )
    values, counts = np.unique(labels, return_counts=True)
    if values[-1] > IGNORED or values[0] < 0:
        raise UserError(f'{path}: has the label {values[-1]}; labels must be 0 to 255')
    pairs = zip(values.tolist(), counts.tolist(), strict=True)
    return Counter({int(label): number for label, number in pairs}), labels.shape[::-1]


def _classes(
    labels: Iterable[int], root: Path, wanted: list[str] | None
) -> tuple[list[str], tuple[str, ...]]:
    """The names of the classes, and what to tell of them."""
    labels = sorted(labels)
    if not labels:
        raise UserError(f'{root}: all pixels of its label maps are {IGNORED}, which is no class')
    number = labels[-1] + 1
    file = next((root / name for name in NAMES if (root / name).is_file()), None)
    names, source = wanted, '--classes'
    if names is None and file:
        names, source = file.read_text(encoding='utf-8').split('\n'), str(file)
        names = [name.strip() for name in names if name.strip()]
    if names is None:
        names, source = [f'class_{i}' for i in range(number)], ''
    if len(names) < number:
        raise UserError(
            f'{source}: names {len(names)} classes, but the label maps have the label '
            f'{labels[-1]}; {number} classes are needed, for the labels 0 to {labels[-1]}'
        )
    notes = []
    if not source:
        notes.append(f'the classes have no names: give them with --classes or in {root / NAMES[0]}')
    if absent := [names[i] for i in range(len(names)) if i not in labels]:
        notes.append(f'no pixel of {some(absent)}')
    return names, tuple(notes)
