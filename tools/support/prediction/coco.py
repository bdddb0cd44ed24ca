"""Objects as COCO's results: the list that pycocotools and COCO's servers take."""

import json
from pathlib import Path, PurePath

from mmengine.dataset import BaseDataset

from support.prediction.inputs import Picture, Source


class CocoResults:
    """Makes entries of COCO's results.

    The ids are those of the config's test annotations: of images, where these name every image that
    is predicted, of categories, where they name every class. Else both are counted from 1: pictures
    as they are read, classes in the config's order. ``ids`` says in words which it is.
    """

    def __init__(
        self, dataset: BaseDataset, classes: tuple[str, ...], sources: list[Source]
    ) -> None:
        file = getattr(dataset, 'ann_file', '')
        content = _read(file)
        self._images = _image_ids(content.get('images', ()), sources)
        categories = {each['name']: each['id'] for each in content.get('categories', ())}
        known = set(classes) <= set(categories)
        self._categories = [categories[c] if known else i for i, c in enumerate(classes, start=1)]
        self.ids = (
            f'image ids {"of " + file if self._images else "counted from 1"}, '
            f'category ids {"of " + file if known else "counted from 1"}'
        )
        self._pictures = 0

    def entries(self, picture: Picture, objects: list[dict]) -> list[dict]:
        """COCO's keys for each object of the next picture, and the picture's file and frame."""
        self._pictures += 1
        name = picture.source.name
        place = dict(image_id=self._images.get(name, self._pictures), file_name=name)
        if picture.frame is not None:
            place['frame'] = picture.frame
        made = []
        for found in objects:
            x1, y1, x2, y2 = found['box']
            entry = place | dict(
                category_id=self._categories[found['label']],
                bbox=[round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
                score=round(found['score'], 5),
            )
            made.append(entry | ({'segmentation': found['mask']} if 'mask' in found else {}))
        return made


def _read(file: str) -> dict:
    """A file of COCO's annotations; empty where it is not there or something else."""
    try:
        with open(file, encoding='utf-8-sig') as opened:
            content = json.load(opened)
    except (OSError, ValueError, TypeError):
        return {}
    return content if isinstance(content, dict) else {}


def _image_ids(images: list[dict], sources: list[Source]) -> dict[str, int]:
    """The id of each source by its name, found by the end of its path; none unless of all."""
    ids = {PurePath(each['file_name']).parts: each['id'] for each in images}
    found = {}
    for source in sources:
        parts = Path(source.name).absolute().parts
        ends = (parts[i:] for i in range(len(parts)))
        number = None if source.moves else next((ids[e] for e in ends if e in ids), None)
        if number is None:
            return {}
        found[source.name] = number
    # two files of one name are not two images of the annotations
    return found if len(set(found.values())) == len(found) else {}
