"""A data set that mmdet reads as COCO's, against its annotation file."""

from collections.abc import Collection
from typing import Any

from support.checks import coco_file, rows
from support.checks.coco_file import CocoFile
from support.checks.dataset import Leaf, some
from support.checks.tally import Tally
from support.cli import UserError


def check_coco(
    leaf: Leaf, path: str, evaluates: frozenset[str] = frozenset()
) -> tuple[CocoFile, Tally]:
    """Check an annotation file as a data set, and the metrics that evaluate by it, read it.

    Args:
        leaf: the data set.
        path: the annotation file.
        evaluates: what metrics evaluate by the file: ``'bbox'``, ``'segm'``, ...
    """
    file = coco_file.read(path)
    check_rows(file, 'images', file.images, rows.IMAGE)
    check_rows(file, 'categories', file.categories, rows.CATEGORY)
    check_rows(file, 'annotations', file.annotations, rows.KEYS)
    if not file.images:
        raise UserError(f'{path}: has no images')
    if leaf.classes:
        _check_classes(file, f'{leaf.key}.metainfo.classes', leaf.classes)
    return file, Objects(file, leaf, evaluates).check()


def check_rows(file: CocoFile, part: str, found: list, fields: tuple[rows.Field, ...]) -> None:
    """Each row against its fields, and that no id is there twice."""
    first: dict[Any, int] = {}
    for i, row in enumerate(found):
        if wrong := rows.problem(row, fields):
            raise UserError(f'{file.path}: {part}[{i}] {wrong}')
        if (before := first.setdefault(row['id'], i)) != i:
            raise UserError(
                f'{file.path}: {part}[{before}] and {part}[{i}] have the same id {row["id"]!r}; '
                'number them anew'
            )


def _check_classes(file: CocoFile, key: str, classes: list[str]) -> None:
    """The classes and their order: mmdet numbers them in the order of the file."""
    names = [category['name'] for category in file.categories]
    missing = [name for name in classes if name not in names]
    if missing:
        raise UserError(
            f'{file.path}: has no category {some(missing)}; it has {some(names)}. Name its classes '
            f"with {key} (of every split), and their number with the heads' num_classes"
        )
    in_file = [name for name in names if name in set(classes)]
    if len(in_file) > len(classes):
        twice = next(name for name in classes if names.count(name) > 1)
        first, second = [i for i, name in enumerate(names) if name == twice][:2]
        raise UserError(
            f'{file.path}: categories[{first}] and categories[{second}] have the same name '
            f'{twice!r}, and mmdet would shift the classes after it: make them one'
        )
    if in_file != classes:
        i = next(i for i, name in enumerate(classes) if in_file[i] != name)
        raise UserError(
            f'{key}: {classes[i]!r} stands where the file {file.path} has {in_file[i]!r}; mmdet '
            'numbers the classes in the order of the file: give them in that order'
        )


class Objects:
    """The annotations of a file: each is looked at as far as something reads it."""

    def __init__(self, file: CocoFile, leaf: Leaf, evaluates: frozenset[str]) -> None:
        self.file, self.evaluates = file, evaluates
        self.images = {image['id']: image for image in file.images}
        self.categories = {category['id'] for category in file.categories}
        self.classes = {
            c['id'] for c in file.categories if not leaf.classes or c['name'] in leaf.classes
        }
        self.any_class = any('proposal' in kind for kind in evaluates)
        self.loads_masks = leaf.loads('mask')
        filters = {} if leaf.config.get('test_mode') else leaf.config.get('filter_cfg') or {}
        self.min_size = filters.get('min_size', 0)
        if not isinstance(self.min_size, (int, float)):
            raise UserError(f'{leaf.key}.filter_cfg.min_size={self.min_size!r}: must be a number')

    def check(self) -> Tally:
        """Refuse the first object that can not be read; count what trains."""
        if self.evaluates:
            self._check_kinds(self.images, 'images')
            self._check_kinds(self.categories, 'categories')
        tally, busy = Tally(len(self.images), len(self.file.annotations)), set()
        for i, row in enumerate(self.file.annotations):
            reason = self._why_dropped(i, row)
            if reason:
                tally.dropped[reason] += 1
            else:
                busy.add(row['image_id'])
        tally.idle = len(self.images) - len(busy)
        return tally

    def _why_dropped(self, i: int, row: dict) -> str | None:
        self._check_keys(i, row)
        if row.get('ignore') and not self.evaluates:
            return 'marked ignore'  # nothing else of it is read
        evaluated = self.evaluates and (row['category_id'] in self.classes or self.any_class)
        self._check_fields(i, row, rows.BOX + (rows.EVALUATED if evaluated else rows.TRAINED))
        image = self.images.get(row['image_id'])
        if image is None:  # beyond what was read of a large file
            return None
        height, width = image['height'], image['width']
        reason = rows.dropped(row, height, width, self.classes, self.min_size)
        kept = reason in (None, rows.CROWD)
        if (kept and self.loads_masks) or (evaluated and 'segm' in self.evaluates):
            self._check_fields(i, row, rows.MASK)
            if wrong := rows.mask_problem(row['segmentation'], height, width):
                self._refuse(i, row, wrong)
        return reason

    def _check_kinds(self, ids: Collection[Any], part: str) -> None:
        """pycocotools sorts them with NumPy, which makes texts of numbers among texts."""
        texts = {isinstance(each, str): each for each in ids}
        if len(texts) > 1:
            raise UserError(
                f'{self.file.path}: {part} have ids of two kinds, {texts[False]!r} and '
                f'{texts[True]!r}; make all of them numbers'
            )

    def _check_keys(self, i: int, row: dict) -> None:
        if self.file.whole and row['image_id'] not in self.images:
            self._refuse(i, row, f'has image_id={row["image_id"]!r}; no image has that id')
        if row['category_id'] not in self.categories:
            wrong = f'has category_id={row["category_id"]!r}; no category has that id'
            self._refuse(i, row, wrong)

    def _check_fields(self, i: int, row: dict, fields: tuple[rows.Field, ...]) -> None:
        if wrong := rows.problem(row, fields):
            self._refuse(i, row, wrong)

    def _refuse(self, i: int, row: dict, wrong: str) -> None:
        known = [f'id {row["id"]!r}']
        if row['image_id'] in self.images:
            known.append(f'image {self.images[row["image_id"]]["file_name"]}')
        raise UserError(f'{self.file.path}: annotations[{i}] ({", ".join(known)}) {wrong}')
