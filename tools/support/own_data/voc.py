"""Data as Pascal VOC has it: an XML file an image.

labelformat reads it, once every file is known to be right.
"""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from support.cli import UserError, one_line
from support.own_data.coco import find_images, split_of
from support.own_data.content import Object, Picture, content
from support.own_data.found import Found, Objects
from support.own_data.needs import labelformat

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')
LISTS = {'train': ('train.txt',), 'val': ('val.txt', 'test.txt')}
"""What ImageSets/Main calls the splits; VOC 2007 has a test list with annotations."""


def find(root: Path) -> dict[str, Path]:
    """The folders of XML files in a folder and three levels below it, by split.

    Raises:
        UserError: there are several of a split.
    """
    found: dict[str, Path] = {}
    for pattern in ('*.xml', '*/*.xml', '*/*/*.xml', '*/*/*/*.xml'):
        for folder in sorted({path.parent for path in root.glob(pattern)}):
            split = split_of(folder, root)
            if split in found:
                raise UserError(
                    f'{root}: has XML files in {found[split]} and in {folder}; name one as DATA'
                )
            found[split] = folder
    return found


def read(folders: dict[str, Path], root: Path, images: Path | None) -> Found:
    """Read folders of XML files.

    Args:
        images: the folder of all images; None looks for it.

    Raises:
        UserError: a file is malformed, with the object; or an image is not there.
    """
    folders = {split: folder for split, folder in folders.items() if split != 'test'}
    trees = {path: _parse(path) for folder in folders.values() for path in _files(folder)}
    names = {name for path, tree in trees.items() for name in _check(path, tree)}
    classes = sorted(names)
    if not classes:
        raise UserError(f'{root}: has XML files without an object')
    if comma := next((name for name in classes if ',' in name), None):
        raise UserError(f'{root}: the class {comma!r} has a comma; labelformat reads none')
    splits = {}
    for split, folder in folders.items():
        place = images or _images_of(folder, trees, split, root)
        splits[split] = Objects(content(classes, _pictures(folder, trees, classes, place)), place)
    if len(splits) == 1:
        splits = _by_lists({'all': splits.popitem()[1]}, root)
    return Found('Pascal VOC', root, classes, splits, ordered=False)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob('*.xml'))


def _parse(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise UserError(f'{path}: no XML: {one_line(error)}') from error


def _check(path: Path, tree: ElementTree.Element) -> list[str]:
    """The names of the objects; refuses what lacks a part or a number."""
    for field in ('filename', 'size/width', 'size/height'):
        text = (tree.findtext(field) or '').strip()
        if not text:
            raise UserError(f'{path}: has no {field}: no annotation of Pascal VOC')
        if field != 'filename' and not (text.isdecimal() and int(text)):
            raise UserError(f'{path}: has {field}={text!r}; it must be a whole number of pixels')
    names = []
    for i, thing in enumerate(tree.findall('object')):
        name, box = thing.findtext('name'), thing.find('bndbox')
        if not name:
            raise UserError(f'{path}: object[{i}] has no name')
        if box is None:
            raise UserError(f'{path}: object[{i}] ({name}) has no bndbox')
        for corner in CORNERS:
            text = box.findtext(corner)
            if not _is_number(text):
                raise UserError(f'{path}: object[{i}] ({name}) has {corner}={text!r}, no number')
        names.append(name)
    return names


def _is_number(text: str | None) -> bool:
    try:
        return math.isfinite(float(text))
    except (TypeError, ValueError):
        return False


def _images_of(folder: Path, trees: dict, split: str, root: Path) -> Path:
    """The folder of the images of XML files, which may be called as the XML is."""
    path = _files(folder)[0]
    rows = [dict(file_name=trees[path].findtext('filename'))]
    try:
        return find_images(path, rows, split, root)
    except UserError as error:
        for place in (folder, *sorted(folder.parent.glob('*/'))):
            if _image_of(path, trees[path], place):
                return place
        raise UserError(
            f'{path}: its image {rows[0]["file_name"]} is in no folder near it; name the folder of '
            'the images with --images'
        ) from error


def _image_of(path: Path, tree: ElementTree.Element, images: Path) -> str | None:
    """The name of the image of an XML file: as it says, else as the file is called."""
    name = Path(tree.findtext('filename').strip().replace('\\', '/')).name
    beside = [p.name for p in sorted(images.glob(f'{path.stem}.*')) if p.suffix != '.xml']
    return name if (images / name).is_file() else beside[0] if beside else None


def _pictures(folder: Path, trees: dict, classes: list[str], images: Path) -> list[Picture]:
    reader = labelformat('pascalvoc').PascalVOCObjectDetectionInput(folder, ','.join(classes))
    pictures = []
    # as labelformat goes through the folder
    for path, label in zip(folder.glob('*.xml'), reader.get_labels(), strict=True):
        name = _image_of(path, trees[path], images)
        if name is None:
            raise UserError(f'{path}: its image {label.image.filename} is not in {images}')
        boxes = [(t.category.id, t.box) for t in label.objects]
        things = [Object(n, (b.xmin, b.ymin, b.xmax, b.ymax)) for n, b in boxes]
        pictures.append(Picture(name, label.image.width, label.image.height, things))
    return sorted(pictures, key=lambda picture: picture.name)


def _by_lists(splits: dict[str, Objects], root: Path) -> dict[str, Objects]:
    """Split by the lists of ImageSets/Main, where they are there."""
    (everything,) = splits.values()
    listed = {}
    for split, names in LISTS.items():
        paths = (path for name in names for path in sorted(root.glob(f'**/ImageSets/Main/{name}')))
        if (path := next(paths, None)) is not None:
            listed[split] = set(path.read_text(encoding='utf-8').split())
    if len(listed) < 2:
        return splits
    stems = [Path(image['file_name']).stem for image in everything.content['images']]
    return {
        split: everything.part({i for i, stem in enumerate(stems) if stem in names})
        for split, names in listed.items()
    }
