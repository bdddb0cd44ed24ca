"""Annotation files of our own, beside the data: what is converted or split is written anew."""

import json
import os
from dataclasses import replace
from pathlib import Path

from support.cli import UserError
from support.files import atomic_write, check_folder
from support.own_data.found import Found, Maps, Objects
from support.own_data.pieces import Paths
from support.own_data.splitting import choose_val

FOLDER = 'rmt'
"""Below the data; nothing else is written there."""

MARK = 'written by tools/new_config.py'
ABOUT = 'about.txt'
"""A file that tells our folder from another of its name."""


def place(found: Found, folder: Path | None = None) -> tuple[Found, Paths, list[Path]]:
    """Split what has no split, and write what is not there as a file.

    Args:
        folder: where to write; None for our folder beside the data.

    Returns:
        The data in splits, its paths, and the files that were written.

    Raises:
        UserError: nothing can be written beside the data, or another's file is in the place.
    """
    splits = dict(found.splits)
    if 'all' in splits:
        splits = _split(splits['all'])
    done = replace(found, splits=splits)
    paths_of = _paths_of_maps if found.is_segmentation else _paths_of_objects
    return done, *paths_of(done, folder or found.place / FOLDER)


def _split(everything: Objects | Maps) -> dict[str, Objects] | dict[str, Maps]:
    """Train and val; the split does not depend on which classes are wanted."""
    if everything.size < 2:
        raise UserError(f'{everything.images}: one image alone can not be split')
    val = choose_val(everything.contents())
    train = set(range(everything.size)) - val
    return {'train': everything.part(train), 'val': everything.part(val)}


def _paths_of_objects(found: Found, folder: Path) -> tuple[Paths, list[Path]]:
    splits: dict[str, Objects] = found.splits
    written = []
    for split, objects in splits.items():
        if objects.file is None:
            objects.file = folder / f'{split}.json'
            objects.content = numbered(objects.content)
            written += write(objects.file, json.dumps(objects.content))
    folders = [o.images for o in splits.values()] + [o.file.parent for o in splits.values()]
    root = Path(os.path.commonpath([found.place, *folders]))
    paths = Paths(
        root,
        {split: below(root, o.images) for split, o in splits.items()},
        {split: os.path.relpath(o.file, root) for split, o in splits.items()},
    )
    return paths, written


def _paths_of_maps(found: Found, folder: Path) -> tuple[Paths, list[Path]]:
    splits: dict[str, Maps] = found.splits
    endings = {split.suffixes for split in splits.values()}
    if len(endings) > 1:
        raise UserError(f'{found.place}: train and val have other file endings: {endings}')
    folders = [path for split in splits.values() for path in (split.images, split.maps)]
    lists, written = None, []
    if not all(split.whole for split in splits.values()):
        lists = {split: folder / f'{split}.txt' for split in splits}
        for split, maps in splits.items():
            written += write(lists[split], '\n'.join(maps.names) + '\n')
        folders.append(folder)
    root = Path(os.path.commonpath([found.place, *folders]))
    paths = Paths(
        root,
        {split: below(root, maps.images) for split, maps in splits.items()},
        {split: below(root, maps.maps) for split, maps in splits.items()},
        lists and {split: os.path.relpath(path, root) for split, path in lists.items()},
        endings.pop(),
    )
    return paths, written


def below(root: Path, folder: Path) -> str:
    """A folder as a data set's prefix names it: empty for ``root`` itself."""
    path = os.path.relpath(folder, root)
    return '' if path == '.' else f'{path}/'


def numbered(content: dict) -> dict:
    """The objects numbered from 1, as pycocotools wants them, and each crowd or not."""
    rows = [{'iscrowd': 0, **row, 'id': i} for i, row in enumerate(content['annotations'], start=1)]
    return {**content, 'annotations': rows}


def write(path: Path, text: str) -> list[Path]:
    """Write a file to our folder; what is new there.

    Raises:
        UserError: it can not be written, or the folder is somebody else's.
    """
    folder, new = path.parent, []
    about = folder / ABOUT
    if not about.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f'{folder}: is there and not {MARK}; rename it')
        check_folder(folder, '--files')
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(about, f'The files in this folder are {MARK}, and overwritten by it.\n')
        new.append(about)
    if not path.exists():
        new.append(path)
    elif path.read_text(encoding='utf-8') == text:
        return new
    atomic_write(path, text)
    return new


def undo(written: list[Path]) -> None:
    """Remove files that were new, and our folder where nothing else is in it."""
    for path in written:
        path.unlink()
    for folder in {path.parent for path in written}:
        if not any(folder.iterdir()):
            folder.rmdir()
