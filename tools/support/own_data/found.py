"""What was found in a person's data, in the same form whatever the format was."""

from collections import Counter
from dataclasses import dataclass
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

    def places(self) -> list[Path]:
        return [self.images / image['file_name'] for image in self.content['images']]

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
        labels: pixels of each label.
    """

    images: Path
    maps: Path
    names: list[str]
    suffixes: tuple[str, str]
    labels: list[Counter]
    shapes: list[tuple[int, int]]

    @property
    def size(self) -> int:
        return len(self.names)

    def places(self) -> list[Path]:
        return [self.images / (name + self.suffixes[0]) for name in self.names]

    def sides(self) -> list[tuple[int, int]]:
        return self.shapes


@dataclass
class Found:
    """A data set.

    Attributes:
        format: its name for people.
        root: the folder that all paths of the config lie below.
        classes: their names, in the order of their numbers.
        splits: ``'train'`` and ``'val'``, or ``'all'`` where the data has no split.
        masks: whether every object that trains has a mask.
        notes: what else to tell about it.
    """

    format: str
    root: Path
    classes: list[str]
    splits: dict[str, Objects] | dict[str, Maps]
    masks: bool = False
    notes: tuple[str, ...] = ()

    @property
    def is_segmentation(self) -> bool:
        return isinstance(next(iter(self.splits.values())), Maps)
