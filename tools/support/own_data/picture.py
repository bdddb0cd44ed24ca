"""What is in the data, as one picture: annotated images, and bars of classes and sizes."""

import contextlib
import io
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from PIL import Image

from support.files import atomic_write
from support.own_data.found import Found
from support.own_data.report import SIZES, class_counts, size_of_objects

matplotlib.use('Agg')
import matplotlib.pyplot as plt

MADE_BY = 'tools/new_config.py'
SHOWN, COLUMNS = 12, 4
SIDE = 360
"""Pixels of the longer side of an image."""
BARS = 30
"""Of many classes the most common are shown."""


def draw(found: Found, cfg: Config, path: Path) -> None:
    """Draw the data of a config that was made for it.

    Args:
        found: in splits.
    """
    images = annotated(cfg, SHOWN)
    rows = -(-len(images) // COLUMNS)
    figure = plt.figure(figsize=(12, 2.6 * rows + 4), layout='constrained')
    above, below = figure.subfigures(2, 1, height_ratios=(2.6 * rows, 4))
    above.suptitle(f'{found.format}: images to train on')
    for axes, image in zip(above.subplots(rows, COLUMNS, squeeze=False).flat, images, strict=False):
        axes.imshow(image)
    for axes in above.axes:
        axes.axis('off')
    panels = [_draw_classes, _draw_image_sizes]
    if not found.is_segmentation:
        panels.insert(1, _draw_object_sizes)
    for axes, panel in zip(below.subplots(1, len(panels)), panels, strict=True):
        panel(axes, found)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    atomic_write(path, partial(figure.savefig, dpi=90, metadata={'Software': MADE_BY}))
    plt.close(figure)


def is_ours(path: Path) -> bool:
    """Whether a picture was drawn here, so that it may be drawn anew."""
    try:
        with Image.open(path) as image:
            return image.info.get('Software') == MADE_BY
    except OSError:
        return False


# --- images --------------------------------------------------------------------------------------


def annotated(cfg: Config, most: int) -> list[np.ndarray]:
    """Images of the training data with what is annotated on them, (H, W, 3) RGB."""
    init_default_scope(cfg.default_scope)
    steps = [step for step in cfg.train_dataloader.dataset.pipeline if 'Load' in step.type]
    pack = cfg.train_dataloader.dataset.pipeline[-1]
    resize = dict(type='Resize', scale=(SIDE, SIDE), keep_ratio=True)
    config = {**cfg.train_dataloader.dataset, 'pipeline': [*steps, resize, pack]}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools says what it does
        dataset = DATASETS.build(config)
    drawer = VISUALIZERS.build({**cfg.visualizer, 'vis_backends': [], 'name': 'own_data'})
    colours = (np.array(matplotlib.colormaps['tab20'].colors) * 255).astype(int).tolist()
    palette = [tuple(colours[i % 20]) for i in range(len(dataset.metainfo['classes']))]
    drawer.dataset_meta = {**dataset.metainfo, 'palette': palette}
    return [_annotated(drawer, dataset[i]) for i in _chosen(dataset, most)]


def _chosen(dataset: BaseDataset, most: int) -> list[int]:
    """An image of each class, the rarest first, then images from all over the data."""
    held = [
        {one['bbox_label'] for one in dataset.get_data_info(i).get('instances', ())}
        for i in range(len(dataset))
    ]
    number = Counter(label for labels in held for label in labels)
    found = [
        next(i for i, labels in enumerate(held) if label in labels)
        for label in sorted(number, key=number.__getitem__)[:most]
    ]
    everywhere = np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int)
    return sorted(list(dict.fromkeys([*found, *everywhere.tolist()]))[:most])


def _annotated(drawer, packed: dict) -> np.ndarray:
    sample = packed['data_samples']
    image = np.ascontiguousarray(packed['inputs'].numpy().transpose(1, 2, 0)[..., ::-1])
    options = {}
    if 'gt_instances' in sample:
        boxes = sample.gt_instances.bboxes
        sample.gt_instances.bboxes = getattr(boxes, 'tensor', boxes)
    else:
        options['with_labels'] = False
    with tempfile.TemporaryDirectory() as folder:  # mmseg's visualizer hands its picture to no one
        file = f'{folder}/image.png'
        drawer.add_datasample('', image, sample, draw_pred=False, out_file=file, **options)
        return cv2.imread(file)[..., ::-1]


# --- bars ----------------------------------------------------------------------------------------


def _draw_classes(axes: plt.Axes, found: Found) -> None:
    counts = class_counts(found)
    names = sorted(found.classes, key=lambda name: -sum(c[name] for c in counts.values()))[:BARS]
    left = np.zeros(len(names))
    for split, count in counts.items():
        values = np.array([count[name] for name in names], float)
        if found.is_segmentation:
            values *= 100 / max(1, sum(c.total() for c in counts.values()))
        axes.barh(names, values, left=left, label=split)
        left += values
    axes.invert_yaxis()
    axes.tick_params('y', labelsize=8 if len(names) > 12 else 10)
    more = f' (the {BARS} most common)' if len(found.classes) > BARS else ''
    what = 'Pixels by class, in per cent' if found.is_segmentation else 'Objects by class'
    axes.set(title=f'{what}{more}', xlim=(0, None))
    axes.legend()


def _draw_object_sizes(axes: plt.Axes, found: Found) -> None:
    left = np.zeros(len(SIZES))
    for split, objects in found.splits.items():
        sizes = size_of_objects(objects, found.classes)
        values = np.array([sizes[name] for name in SIZES], float)
        axes.bar(list(SIZES), values, bottom=left, label=split)
        left += values
    axes.set(title='Objects by size (edges: 32², 96² pixels)')


def _draw_image_sizes(axes: plt.Axes, found: Found) -> None:
    for split, one in found.splits.items():
        widths, heights = zip(*one.sides(), strict=True)
        axes.scatter(widths, heights, s=14, alpha=0.5, label=split)
    axes.set(title='Images', xlabel='width', ylabel='height')
    axes.set(xlim=(0, axes.get_xlim()[1]), ylim=(0, axes.get_ylim()[1]))
