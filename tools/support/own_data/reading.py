"""What a person has: which format it is, and its content."""

from pathlib import Path

from support.checks.dataset import some
from support.cli import UserError
from support.own_data import coco, labelme, maps, voc, yolo
from support.own_data.found import Found

LAYOUTS = 'COCO JSON (one file, or train and val)'


def read(
    data: str, images: str | None = None, val: str | None = None, wanted: list[str] | None = None
) -> Found:
    """Read the data at a path.

    Args:
        data: a folder, or an annotation file.
        images: the folder of the images, where it is not near.
        val: for COCO JSON, the file to validate on.
        wanted: the classes to take.

    Raises:
        UserError: there is nothing that is known, or a file is malformed.
    """
    path = Path(data).expanduser().absolute()
    folder = Path(images).expanduser().absolute() if images else None
    if not path.exists():
        raise UserError(f'DATA {data}: no such file or folder')
    if folder and not folder.is_dir():
        raise UserError(f'--images {images}: no such folder')
    if val and not (path.is_file() and path.suffix.lower() == '.json'):
        raise UserError(f'--val {val}: goes with one JSON file as DATA, to train on')
    if path.is_file():
        return _read_file(path, folder, val and Path(val).expanduser().absolute(), wanted)
    return _read_folder(path, folder, wanted)


def _read_file(
    path: Path, images: Path | None, val: Path | None, wanted: list[str] | None
) -> Found:
    if path.suffix.lower() in ('.yaml', '.yml'):
        _refuse(images, 'data.yaml')
        return chosen(yolo.read(path), wanted)
    if path.suffix.lower() == '.json':
        files = {'train': path, 'val': val} if val else {'all': path}
        return coco.read(files, images, wanted)
    raise UserError(f'DATA {path}: must be {LAYOUTS}')


def _read_folder(path: Path, images: Path | None, wanted: list[str] | None) -> Found:
    described = [p for p in sorted(path.glob('*.y*ml')) if 'names' in p.read_text(errors='replace')]
    if len(described) == 1:
        _refuse(images, described[0].name)
        return chosen(yolo.read(described[0]), wanted)
    if described:
        raise UserError(f'{path}: has {some([p.name for p in described])}; name one as DATA')
    if found := labelme.find(path):
        return chosen(labelme.read(found, path, images), wanted)
    if found := coco.find(path):
        return coco.read(coco.choose(found, path), images, wanted, path)
    if found := maps.find(path):
        _refuse(images, 'the name of their folder')
        return maps.read(found, path, wanted)
    if found := voc.find(path):
        return chosen(voc.read(found, path, images), wanted)
    raise UserError(f'DATA {path}: nothing known in it; it must hold {LAYOUTS}')


def _refuse(images: Path | None, instead: str) -> None:
    if images:
        raise UserError(
            f'--images {images}: has no effect; the images are where {instead} has them'
        )


def chosen(found: Found, wanted: list[str] | None) -> Found:
    """Take the wanted classes of converted data, and tell whether it has masks.

    Classes that the format does not number are in the order in which they are wanted.
    """
    if wanted and not found.ordered:
        found.classes.sort(key=lambda n: wanted.index(n) if n in wanted else len(wanted))
        for split in found.splits.values():
            split.content['categories'].sort(key=lambda c: found.classes.index(c['name']))
    return coco.chosen(found, wanted)
