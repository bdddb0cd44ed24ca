"""What was found in a person's data, in the same form whatever the format was."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from support.checks import rows
from support.checks.tally import Tally


@dataclass
class Objects:
    """Images with objects: a split, or all of a data set that has none.

    Attributes:
        content: as a COCO file has it.
        images: the folder that the names of the images are relative to.
        file: the annotation file; None where it is yet to be written.
    """

    content: dict
    images: Path
    file: Path | None = None

    @property
    def size(self) -> int:
        return len(self.content['images'])

    def contents(self) -> list[set]:
        """The categories in each image."""
        found: dict[object, set] = {image['id']: set() for image in self.content['images']}
        for row in self.content['annotations']:
            found[row['image_id']].add(row['category_id'])
        return list(found.values())

    def part(self, chosen: set[int]) -> 'Objects':
        """Some of the images, by their numbers, with their objects; yet to be written."""
        images = [image for i, image in enumerate(self.content['images']) if i in chosen]
        kept = {image['id'] for image in images}
        rows = [row for row in self.content['annotations'] if row['image_id'] in kept]
        return Objects({**self.content, 'images': images, 'annotations': rows}, self.images)

    def sides(self) -> list[tuple[int, int]]:
        """Width and height of each image."""
        return [(image['width'], image['height']) for image in self.content['images']]

    def kept(self, classes: list[str]) -> list[dict]:
        """The objects that train."""
        return [row for row, reason in self._judged(classes) if reason is None]

    def tally(self, classes: list[str]) -> Tally:
        """How many objects there are, and which of them train nothing, by reason."""
        tally, busy = Tally(self.size, len(self.content['annotations'])), set()
        for row, reason in self._judged(classes):
            if reason:
                tally.dropped[reason] += 1
            else:
                busy.add(row['image_id'])
        tally.idle = self.size - len(busy)
        return tally

    def by_class(self, classes: list[str]) -> Counter:
        """How many objects of each class train."""
        names = {c['id']: c['name'] for c in self.content['categories']}
        return Counter(names[row['category_id']] for row in self.kept(classes))

    def _judged(self, classes: list[str]) -> list[tuple[dict, str | None]]:
        sizes = {i['id']: (i['height'], i['width']) for i in self.content['images']}
        wanted = {c['id'] for c in self.content['categories'] if c['name'] in classes}
        return [
            (row, rows.dropped(row, *sizes[row['image_id']], wanted))
            for row in self.content['annotations']
        ]


@dataclass
class Maps:
    """Images with label maps: a split, or all of a data set that has none.

    Attributes:
        images, maps: the two folders.
        names: of the images below their folder, without suffix.
        suffixes: of images and label maps.
        labels: in each image, the pixels of each label.
        shapes: width and height of each image.
        whole: whether these are all images of the folder.
    """

    images: Path
    maps: Path
    names: list[str]
    suffixes: tuple[str, str]
    labels: list[Counter]
    shapes: list[tuple[int, int]]
    whole: bool = True

    @property
    def size(self) -> int:
        return len(self.names)

    def part(self, chosen: set[int]) -> 'Maps':
        """Some of the images, by their numbers."""
        names, labels, shapes = (
            [one for i, one in enumerate(all_) if i in chosen]
            for all_ in (self.names, self.labels, self.shapes)
        )
        return replace(self, names=names, labels=labels, shapes=shapes, whole=False)

    def contents(self) -> list[set]:
        """The labels in each image."""
        return [set(labels) for labels in self.labels]

    def sides(self) -> list[tuple[int, int]]:
        return self.shapes


@dataclass
class Found:
    """A data set.

    Attributes:
        format: its name for people.
        place: the folder of the data, where files of our own go.
        classes: their names, in the order of their numbers.
        splits: ``'train'`` and ``'val'``, or ``'all'`` where the data has no split.
        masks: whether every object that trains has a mask.
        ordered: whether the format numbers its classes.
        notes: what else to tell about it.
    """

    format: str
    place: Path
    classes: list[str]
    splits: dict[str, Objects] | dict[str, Maps]
    masks: bool = False
    ordered: bool = True
    notes: tuple[str, ...] = ()

    @property
    def is_segmentation(self) -> bool:
        return isinstance(next(iter(self.splits.values())), Maps)
