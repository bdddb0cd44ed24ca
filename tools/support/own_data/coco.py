"""Data in COCO's format, whatever the files are called."""

from collections.abc import Iterable
from pathlib import Path

from mmengine.registry import init_default_scope

from support.checks import coco_file, rows
from support.checks.coco import check_coco
from support.checks.dataset import Leaf, some
from support.cli import UserError
from support.own_data.found import Found, Objects

VAL, TEST = ('val', 'valid', 'validation', 'dev'), ('test', 'testing')
"""Words in the name of a split, in lower case; what is neither is for training."""


def is_coco(path: Path) -> bool:
    """Whether a JSON file begins as COCO's do; the lists may come in any order."""
    try:
        with open(path, 'rb') as file:
            head = file.read(2**16)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from error
    lists = (b'"images"', b'"annotations"', b'"categories"', b'"info"', b'"licenses"')
    return any(name in head for name in lists)


def split_of(path: Path, root: Path) -> str:
    """The split that a path names: ``'train'``, ``'val'``, ``'test'``; ``'all'`` where it does not.

    The last part that tells counts: ``train/images``, ``annotations/instances_val2017.json``.
    """
    for part in reversed(path.relative_to(root).parts):
        words = ''.join(c if c.isalpha() else ' ' for c in part.lower()).split()
        for split, names in dict(val=VAL, test=TEST, train=('train', 'training')).items():
            if set(words) & set(names):
                return split
    return 'all'


def find(root: Path) -> dict[str, list[Path]]:
    """The COCO files in a folder and two levels below it, by split."""
    found: dict[str, list[Path]] = {}
    for pattern in ('*.json', '*/*.json', '*/*/*.json'):
        for path in sorted(root.glob(pattern)):
            if path.name.startswith(('.', 'captions', 'person_keypoints', 'panoptic')):
                continue
            if path.is_file() and path.parent.name != 'rmt' and is_coco(path):
                found.setdefault(split_of(path, root), []).append(path)
    return found


def choose(found: dict[str, list[Path]], root: Path) -> dict[str, Path]:
    """One file a split; a file alone is all there is.

    Raises:
        UserError: there are several, and their names do not tell them apart.
    """
    files = [path for split, paths in found.items() if split != 'test' for path in paths]
    if len(files) == 1:
        return {'all': files[0]}
    if len(files) == 2 and len(found.get('train', ())) == len(found.get('val', ())) == 1:
        return {split: found[split][0] for split in ('train', 'val')}
    names = [str(path.relative_to(root)) for path in files]
    raise UserError(
        f'{root}: has the annotation files {some(names)}; give the one to train on as DATA, and '
        'one to validate on with --val'
    )


def read(
    files: dict[str, Path],
    images: Path | None,
    wanted: list[str] | None,
    inside: Path | None = None,
) -> Found:
    """Read annotation files of splits.

    Args:
        images: the folder of all images; None looks for it.
        wanted: the classes to take, None takes those that have objects.
        inside: looks for images in this folder alone.

    Raises:
        UserError: a file is malformed, with its place; or no folder has the images.
    """
    init_default_scope('mmdet')
    splits = {s: _read_split(s, path, images, inside) for s, path in files.items()}
    names = [c['name'] for c in next(iter(splits.values())).content['categories']]
    place = inside or next(iter(files.values())).parent
    return chosen(Found('COCO JSON', place, names, splits), wanted)


def chosen(found: Found, wanted: list[str] | None) -> Found:
    """Take the wanted classes, those that have objects by default, and look for masks.

    Where only some objects have a mask, the notes say how many have none.
    """
    names = found.classes
    found.classes = classes_of(names, found.splits.values(), wanted)
    if len(found.classes) < len(names):
        some_of = f'of {len(names)} classes {len(found.classes)} are taken: {some(found.classes)}'
        found.notes += (some_of,)
    kept = [
        (row, image)
        for split in found.splits.values()
        for image in [{i['id']: i for i in split.content['images']}]
        for row in split.kept(found.classes)
    ]
    lacking = sum(not _has_mask(row, image[row['image_id']]) for row, image in kept)
    found.masks = bool(kept) and not lacking
    if 0 < lacking < len(kept):
        found.notes += (f'{lacking} of {len(kept)} objects have no mask: boxes alone are used',)
    return found


def _has_mask(row: dict, image: dict) -> bool:
    mask = row.get('segmentation')
    return bool(mask) and rows.mask_problem(mask, image['height'], image['width']) is None


def _read_split(split: str, path: Path, images: Path | None, inside: Path | None) -> Objects:
    file = coco_file.read(str(path), whole=True)
    names = [c.get('name') for c in file.categories if isinstance(c, dict)]
    classes = list(dict.fromkeys(name for name in names if isinstance(name, str)))
    config = dict(type='CocoDataset', ann_file=str(path), metainfo=dict(classes=classes))
    # without a pipeline objects are looked at as boxes
    leaf = Leaf(f'{split}_dataloader.dataset', config)
    check_coco(leaf, str(path), frozenset({'bbox'} if split == 'val' else ()))
    content = dict(images=file.images, annotations=file.annotations, categories=file.categories)
    return Objects(content, images or find_images(path, file.images, split, inside), path)


def classes_of(names: list[str], splits: Iterable[Objects], wanted: list[str] | None) -> list[str]:
    """The classes to train, in the order of the file, by which mmdet numbers them."""
    used = set().union(*(split.by_class(names) for split in splits))
    if not used:
        split = next(iter(splits))
        tally = split.tally(names)
        where, why = split.file or split.images, tally.reasons() or 'none is there'
        raise UserError(f'{where}: no object to train on: of {tally.objects}, {why}')
    if wanted is None:
        return [name for name in names if name in used]
    if unknown := [name for name in wanted if name not in names]:
        raise UserError(f'--classes: the data has no {some(unknown)}; it has {some(names)}')
    return [name for name in names if name in wanted]


def find_images(
    path: Path, images: list[dict], split: str = 'all', inside: Path | None = None
) -> Path:
    """The folder below which the images of an annotation file lie.

    A folder that is called as another split is goes last: train and val may use the same names.

    Args:
        inside: looks in this folder alone; None looks beside the folder of the file too.

    Raises:
        UserError: there is none near the file.
    """
    names = [image['file_name'] for image in images]
    near = [path.parent, path.parent.parent]
    near = [place for place in near if inside is None or place.is_relative_to(inside)]
    below = [folder for place in near for folder in sorted(place.glob('*/')) if folder.is_dir()]
    deeper = [folder for place in below for folder in sorted(place.glob('*/')) if folder.is_dir()]
    folders = sorted((*near, *below, *deeper), key=lambda folder: _is_of_another(folder, split))
    for folder in folders:  # the first image tells most folders apart
        if (folder / names[0]).is_file() and all((folder / name).is_file() for name in names):
            return folder
    partly = [folder for folder in folders if any((folder / name).is_file() for name in names)]
    if partly:
        i, lost = next((i, n) for i, n in enumerate(names) if not (partly[0] / n).is_file())
        raise UserError(f'{path}: images[{i}]: {partly[0] / lost}: no such file')
    raise UserError(
        f'{path}: images[0] ({names[0]}) is in no folder near the file; name the folder of the '
        'images with --images'
    )


def _is_of_another(folder: Path, split: str) -> bool:
    """Whether a folder is called as another split."""
    return 'all' != split_of(folder, folder.parent) != split != 'all'
