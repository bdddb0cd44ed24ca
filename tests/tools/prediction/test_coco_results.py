"""tools/support/prediction/coco.py: entries that pycocotools loads, with the right ids."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from prediction_stubs import META, find_squares
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.prediction.coco import CocoResults
from support.prediction.findings import objects
from support.prediction.inputs import Picture, Source

NAMES = ['b/1.png', 'a/1.png']


def annotated(folder: Path) -> tuple[SimpleNamespace, list[Picture]]:
    """Annotations of two images, whose ids and categories have gaps, and the images' pictures."""
    images, annotations, pictures = [], [], []
    for number, name in enumerate(NAMES):
        pixels = np.zeros((80, 120, 3), np.uint8)
        x, y, w, h = 10 + 40 * number, 12, 30, 20
        pixels[y : y + h, x : x + w] = 255
        pictures.append(Picture(Source(f'/data/images/{name}'), pixels))
        images.append(dict(id=70 + 5 * number, file_name=name, height=80, width=120))
        annotations.append(
            dict(id=number + 1, image_id=70 + 5 * number, category_id=18, bbox=[x, y, w, h],
                 area=w * h, iscrowd=0, segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]])
        )  # fmt: skip
    categories = [dict(id=18, name='bright'), dict(id=3, name='dark'), dict(id=9, name='other')]
    file = folder / 'annotations.json'
    file.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return SimpleNamespace(ann_file=str(file)), pictures


def results(coco: CocoResults, pictures: list[Picture]) -> list[dict]:
    samples = find_squares([picture.pixels for picture in pictures])
    return [
        entry
        for picture, sample in zip(pictures, samples, strict=True)
        for entry in coco.entries(picture, objects(sample, 0.3, masks=True))
    ]


@pytest.mark.parametrize('metric', ['bbox', 'segm'])
def test_a_perfect_prediction_scores_one(metric: str, tmp_path: Path) -> None:
    dataset, pictures = annotated(tmp_path)
    coco = CocoResults(dataset, META['classes'], [p.source for p in pictures])
    (tmp_path / 'results.json').write_text(json.dumps(results(coco, pictures)))
    truth = COCO(dataset.ann_file)
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / 'results.json')), metric)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
    assert coco.ids.count(dataset.ann_file) == 2


def test_images_that_the_annotations_do_not_have_are_counted(tmp_path: Path) -> None:
    dataset, pictures = annotated(tmp_path)
    other = Picture(Source('other/2.png'), pictures[0].pixels)
    pictures = [*pictures, other]
    coco = CocoResults(dataset, META['classes'], [p.source for p in pictures])
    found = results(coco, pictures)
    assert [entry['image_id'] for entry in found] == [1, 2, 3]
    assert {entry['category_id'] for entry in found} == {18}
    assert [entry['file_name'] for entry in found] == [p.source.name for p in pictures]
    assert coco.ids == f'image ids counted from 1, category ids of {dataset.ann_file}'


def test_two_files_of_one_name_are_not_one_image(tmp_path: Path) -> None:
    dataset, pictures = annotated(tmp_path)
    copies = [Picture(Source(f'{folder}/{NAMES[0]}'), pictures[0].pixels) for folder in 'xy']
    coco = CocoResults(dataset, META['classes'], [p.source for p in copies])
    assert [entry['image_id'] for entry in results(coco, copies)] == [1, 2]


@pytest.mark.parametrize('content', [None, '', 'no JSON', '[]', '{}'])
def test_without_annotations_all_is_counted_from_one(content: str | None, tmp_path: Path) -> None:
    dataset, pictures = annotated(tmp_path)
    if content is None:
        dataset = SimpleNamespace()
    else:
        Path(dataset.ann_file).write_text(content)
    coco = CocoResults(dataset, META['classes'], [p.source for p in pictures])
    found = results(coco, pictures)
    assert [(entry['image_id'], entry['category_id']) for entry in found] == [(1, 2), (2, 2)]
    assert coco.ids == 'image ids counted from 1, category ids counted from 1'


def test_frames_are_images(tmp_path: Path) -> None:
    dataset, pictures = annotated(tmp_path)
    clip = Source(pictures[0].source.name + '.mp4')
    frames = [Picture(clip, pictures[0].pixels, frame) for frame in range(3)]
    coco = CocoResults(dataset, META['classes'], [clip])
    found = results(coco, frames)
    assert [(entry['image_id'], entry['frame']) for entry in found] == [(1, 0), (2, 1), (3, 2)]
