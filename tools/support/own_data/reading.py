"""What a person has: which format it is, and its content."""

from pathlib import Path

from support.cli import UserError
from support.own_data import coco
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
    if path.is_file():
        if path.suffix == '.json':
            files = {'train': path, 'val': Path(val).absolute()} if val else {'all': path}
            return coco.read(files, folder, wanted)
        raise UserError(f'DATA {data}: not a file of annotations')
    if found := coco.find(path):
        return coco.read(coco.choose(found, path), folder, wanted, path)
    raise UserError(f'DATA {data}: nothing known in it; it must hold {LAYOUTS}')
