"""Annotation files of our own, beside the data: what is converted or split is written anew."""

import json
import os
from pathlib import Path

from support.cli import UserError
from support.files import atomic_write, check_folder
from support.own_data.found import Found, Objects
from support.own_data.splitting import choose_val
from support.own_data.writing import Paths

FOLDER = 'rmt'
"""Below the data; nothing else is written there."""

MADE_BY = 'tools/new_config.py'


def place(found: Found) -> tuple[Found, Paths, list[Path]]:
    """Split what has no split, and write what is not there as a file.

    Returns:
        The data in splits, its paths, and the files that were written.

    Raises:
        UserError: nothing can be written beside the data, or another's file is in the place.
    """
    splits = dict(found.splits)
    if 'all' in splits:
        splits = _split(splits['all'])
    done = Found(found.format, found.root, found.classes, splits, found.masks, found.notes)
    paths, written = _paths_of_objects(done)
    return done, paths, written


def _split(everything: Objects) -> dict[str, Objects]:
    """Train and val; the split does not depend on which classes are wanted."""
    content = everything.content
    if len(content['images']) < 2:
        raise UserError(f'{everything.file or everything.images}: one image alone can not be split')
    classes: dict[object, set] = {image['id']: set() for image in content['images']}
    for row in content['annotations']:
        classes[row['image_id']].add(row['category_id'])
    chosen = choose_val([classes[image['id']] for image in content['images']])
    splits = {}
    for split in ('train', 'val'):
        images = [
            image for i, image in enumerate(content['images']) if (i in chosen) == (split == 'val')
        ]
        kept = {image['id'] for image in images}
        rows = [row for row in content['annotations'] if row['image_id'] in kept]
        part = {**content, 'images': images, 'annotations': rows}
        splits[split] = Objects(part, everything.images)
    return splits


def _paths_of_objects(found: Found) -> tuple[Paths, list[Path]]:
    written: list[Path] = []
    for split, objects in found.splits.items():
        if objects.file is None:
            objects.file = found.root / FOLDER / f'{split}.json'
            objects.content = numbered(objects.content)
            if write(objects.file, objects.content):
                written.append(objects.file)
    return Paths(
        found.root,
        {s: below(found.root, o.images) for s, o in found.splits.items()},
        {s: os.path.relpath(o.file, found.root) for s, o in found.splits.items()},
    ), written


def below(root: Path, folder: Path) -> str:
    """A folder as a data set's prefix names it: empty for ``root`` itself."""
    path = os.path.relpath(folder, root)
    return '' if path == '.' else f'{path}/'


def numbered(content: dict) -> dict:
    """The objects numbered from 1, as pycocotools wants them, and each crowd or not."""
    rows = [{'iscrowd': 0, **row, 'id': i} for i, row in enumerate(content['annotations'], start=1)]
    return {**content, 'annotations': rows}


def write(path: Path, content: dict) -> bool:
    """Write an annotation file; whether there was none.

    Raises:
        UserError: it can not be written, or there is one that is not of this tool.
    """
    text = json.dumps({'info': {'description': f'written by {MADE_BY}'}, **content})
    new = not path.exists()
    if not new:
        before = path.read_text(encoding='utf-8', errors='replace')
        if f'written by {MADE_BY}' not in before[:200]:
            raise UserError(f'{path}: is there and not of {MADE_BY}; move it away')
        if before == text:
            return False
    check_folder(path.parent, 'beside the data,')
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, text)
    return new
