"""One image as the test data set of a config, in COCO's or ADE20K's format."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS

from support import cli

LONGER_SIDE = 640
"""Pixels of the painted image."""
OBJECTS = 7
"""Annotated ones in the image, as in COCO's on average."""


def use_image(
    cfg: Config, folder: Path, image: str | None, shape: tuple[int, int] | None, rows: int
) -> None:
    """Make the test data of ``cfg`` one image, ``rows`` times, resized to ``shape``.

    Args:
        folder: where image and annotations go.
        image: a file; None paints one of ``shape``'s proportions.
        shape: height and width at the model; None leaves the pipeline as it is.

    Raises:
        UserError: no image that can be decoded, or a data set or pipeline of another kind.
    """
    loader = cfg.test_dataloader
    loader.update(batch_size=1, num_workers=0, persistent_workers=False)
    if shape:
        resize = [step for step in loader.dataset.get('pipeline', []) if step.type == 'Resize']
        if not resize:
            raise cli.UserError(f'{cfg.filename}: --shape: its test pipeline has no Resize')
        resize[0].update(scale=shape[::-1], keep_ratio=False)
    file = folder / 'image.jpg'
    if image:
        shutil.copyfile(cli.existing_file(image, '--image'), file)
    else:
        cv2.imwrite(str(file), paint(*(round(s * LONGER_SIDE / max(shape)) for s in shape)))
    picture = cv2.imread(str(file))
    if picture is None:
        raise cli.UserError(f'--image {image}: no image that can be decoded')

    with DATASETS.switch_scope_and_registry(None) as registry:
        kind = registry.get(loader.dataset.type)
    parents = {parent.__name__ for parent in kind.__mro__} if kind else set()
    classes = loader.dataset.get('metainfo', {}).get('classes')
    classes = classes or getattr(kind, 'METAINFO', {}).get('classes', ())
    if 'CocoDataset' in parents:
        write = _write_coco
    elif 'BaseSegDataset' in parents:
        write = _write_segmentation
    else:
        raise cli.UserError(f"{cfg.filename}: {loader.dataset.type} is neither COCO's nor mmseg's")
    write(cfg, file, picture.shape[:2], classes, rows)


def paint(height: int, width: int) -> np.ndarray:
    """Soft patches of colour with some noise, which take a photo's time to decode; BGR, uint8."""
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (6, 8, 3)).astype(np.float32)
    picture = cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)


def _write_coco(
    cfg: Config, file: Path, size: tuple[int, int], classes: tuple[str, ...], rows: int
) -> None:
    height, width = size
    rng = np.random.default_rng(0)
    x, y = rng.random((2, OBJECTS)) * 0.7 * [[width], [height]]
    w, h = 0.3 * width, 0.3 * height
    objects = [
        dict(
            category_id=i % len(classes) + 1,
            bbox=[x, y, w, h],
            area=w * h,
            iscrowd=0,
            segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
        )
        for i, (x, y) in enumerate(zip(x.tolist(), y.tolist(), strict=True))
    ]
    content = dict(
        images=[
            dict(id=row, file_name=file.name, height=height, width=width) for row in range(rows)
        ],
        annotations=[
            dict(each, id=row * OBJECTS + i + 1, image_id=row)
            for row in range(rows)
            for i, each in enumerate(objects)
        ],
        categories=[dict(id=i, name=name) for i, name in enumerate(classes, start=1)],
    )
    annotations = file.with_name('annotations.json')
    annotations.write_text(json.dumps(content))
    place = dict(ann_file=str(annotations), data_prefix=dict(img=str(file.parent)))
    cfg.test_dataloader.dataset.update(data_root=None, **place)
    evaluators = cfg.test_evaluator
    for metric in evaluators if isinstance(evaluators, list) else [evaluators]:
        if 'ann_file' in metric:
            metric.ann_file = str(annotations)


def _write_segmentation(
    cfg: Config, file: Path, size: tuple[int, int], classes: tuple[str, ...], rows: int
) -> None:
    height, width = size
    labels = np.random.default_rng(0).integers(0, len(classes), (6, 8), dtype=np.uint8)
    labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(file.with_suffix('.png')), labels)
    names = file.with_name('names.txt')
    names.write_text(f'{file.stem}\n' * rows)
    folder = str(file.parent)
    cfg.test_dataloader.dataset.update(
        data_root=None,
        ann_file=str(names),
        data_prefix=dict(img_path=folder, seg_map_path=folder),
        img_suffix='.jpg',
        seg_map_suffix='.png',
    )
