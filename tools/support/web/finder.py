"""What finds: a checkpoint in PyTorch, or a file of tools/export_onnx.py, behind one call."""

import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import encode_mask_results
from mmdet.visualization import get_palette
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmseg.structures import SegDataSample

from support import cli
from support.prediction.drawing import Drawing
from support.prediction.inputs import Picture
from support.prediction.model import build, predictor

TASKS = {'mmdet': 'detection', 'mmseg': 'segmentation', 'mmpretrain': 'classification'}
"""By the scope of a config."""
VISUALIZERS = {
    'detection': ('mmdet', 'DetLocalVisualizer'),
    'segmentation': ('mmseg', 'SegLocalVisualizer'),
}
"""Scope and type, by an exported file's task."""
DRAWN = {
    'detection': dict(pred_score_thr=-1.0),
    # names on a label overlay would take seconds of a photo; the page has a legend
    'segmentation': dict(with_labels=False),
    'classification': {},
}
"""The visualizer's options, by task."""


@dataclass(frozen=True)
class Found:
    """What is found in a picture, masks in run-length code, and the seconds that it took."""

    picture: Picture
    sample: BaseDataElement
    seconds: float


class Finder:
    """A model for several threads at once, which it serves one after the other.

    Args:
        name: the config's.
        source: the file that the weights are of.
        meta: classes and palette.
        predict: from a picture (H, W, 3), RGB, uint8, to a prediction.
        cfg: has a visualizer.
        task: one of :data:`TASKS`.
    """

    def __init__(
        self,
        name: str,
        source: str,
        meta: dict,
        predict: Callable[[np.ndarray], BaseDataElement],
        cfg: Config,
        task: str,
    ) -> None:
        self.name, self.source, self.task = name, source, task
        self.meta = {**meta, 'palette': _palette(meta)}
        self._predict, self._finding, self._drawing = predict, threading.Lock(), threading.Lock()
        warnings.filterwarnings('ignore', '.* is out of bounds', UserWarning)  # a box at an edge
        self._draw = Drawing(cfg, self.meta, **DRAWN[task])

    def find(self, picture: Picture) -> Found:
        with self._finding:
            begin = time.monotonic()
            sample = self._predict(picture.pixels)
            seconds = time.monotonic() - begin
        return Found(picture, _to_keep(sample, len(self.meta['classes'])), seconds)

    def draw(self, picture: Picture, sample: BaseDataElement) -> np.ndarray:
        """A picture (H, W, 3), RGB, uint8; the same for the same."""
        with self._drawing:
            np.random.seed(0)  # by which mmdet varies a class's colour from mask to mask
            return self._draw(picture, sample)


def from_checkpoint(cfg: Config, checkpoint: str, device: str) -> Finder:
    """The config's model with the checkpoint's weights.

    Raises:
        UserError: one of the two does not fit, or the model finds what no page is for.
    """
    if cfg.default_scope not in TASKS:
        raise cli.UserError(
            f'{cfg.filename}: default_scope is {cfg.default_scope}; the page is for those of '
            f'{", ".join(TASKS)}'
        )
    with warnings.catch_warnings():  # mmdet turns all of them on, for good
        model, _ = build(cfg, checkpoint, device)
    predict = predictor(model, cfg)
    name, meta = Path(cfg.filename).stem, model.dataset_meta
    task = TASKS[cfg.default_scope]
    return Finder(name, checkpoint, meta, lambda pixels: predict([pixels])[0], cfg, task)


def from_exported(path: str) -> Finder:
    """A file of tools/export_onnx.py, in onnxruntime.

    Raises:
        UserError: no such file, or one that finds nothing.
    """
    from support.exported import ExportedModel

    model = ExportedModel(path)
    if model.task not in VISUALIZERS:
        raise cli.UserError(f'{path}: holds the backbone alone, which finds nothing')
    scope, visualizer = VISUALIZERS[model.task]
    init_default_scope(scope)
    cfg = Config(dict(visualizer=dict(type=visualizer)))
    meta = dict(classes=model.classes, palette=model.palette)

    def predict(pixels: np.ndarray) -> BaseDataElement:
        found = model.predict(pixels)
        if model.task == 'segmentation':
            return SegDataSample(pred_sem_seg=PixelData(data=torch.from_numpy(found)[None]))
        instances = InstanceData(
            bboxes=torch.from_numpy(found.boxes),
            scores=torch.from_numpy(found.scores),
            labels=torch.from_numpy(found.labels),
        )
        if found.masks is not None:
            instances.masks = torch.from_numpy(found.full_masks())
        return DetDataSample(pred_instances=instances)

    return Finder(model.name, path, meta, predict, cfg, model.task)


def _palette(meta: dict) -> list[tuple[int, int, int]]:
    """A colour a class; where the data set has none, or too few, those that mmdet makes up."""
    palette, number = meta.get('palette'), len(meta['classes'])
    if not isinstance(palette, str):
        palette = list(map(tuple, palette)) if palette and len(palette) >= number else None
    return get_palette(palette, number)


def _to_keep(sample: BaseDataElement, classes: int) -> BaseDataElement:
    """Of a prediction what is shown of it, in little memory."""
    if 'pred_sem_seg' in sample:
        labels = sample.pred_sem_seg.data.cpu().to(torch.uint8 if classes < 256 else torch.int16)
        return SegDataSample(pred_sem_seg=PixelData(data=labels))
    if 'pred_score' in sample:
        return type(sample)().set_pred_score(sample.pred_score.cpu())
    found = sample.pred_instances.cpu()
    kept = InstanceData(bboxes=found.bboxes, scores=found.scores, labels=found.labels)
    if 'masks' in found:
        kept.masks = encode_mask_results(found.masks.numpy())
    return DetDataSample(pred_instances=kept)
