"""Pictures of predictions by the frameworks' visualizers, and videos of such pictures."""

import os
import time
from pathlib import Path
from types import TracebackType

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement
from mmengine.visualization import BaseVisBackend, Visualizer
from pycocotools import mask as coco_mask

from support import cli
from support.prediction.findings import best_classes
from support.prediction.inputs import Picture

MASKS_DRAWN = 2e9
"""Most bytes of masks that a picture is drawn with, of all objects together; else boxes alone."""


class Drawing:
    """Draws what a model finds as its config's visualizer does.

    Args:
        meta: the model's classes and palette.
        options: of the visualizer.
    """

    def __init__(self, cfg: Config, meta: dict, **options: object) -> None:
        self._kept = _KeptPicture()
        # mmengine keeps visualizers by name, and would give back an earlier one
        own = dict(name=f'drawing_{time.monotonic_ns()}', vis_backends=[self._kept])
        self._visualizer = VISUALIZERS.build({**cfg.visualizer, **own})
        self._visualizer.dataset_meta = meta
        self._options = options

    def __call__(self, picture: Picture, sample: BaseDataElement) -> np.ndarray:
        """A picture (H, W, 3), RGB, uint8."""
        draw_sample(
            self._visualizer,
            Path(picture.source.name).name,
            picture.pixels,
            with_mask_arrays(sample),
            draw_gt=False,
            **self._options,
        )
        return self._kept.picture


def draw_sample(
    visualizer: Visualizer,
    name: str,
    image: np.ndarray,
    sample: BaseDataElement,
    **options: object,
) -> None:
    """Draw a prediction on an image (H, W, 3), RGB, as the visualizer of its framework does."""
    if 'pred_score' in sample:
        sample = sample.clone()
        best = [top['label'] for top in best_classes(sample)]
        visualizer.visualize_cls(image, sample.set_pred_label(best), name=name, **options)
    else:
        visualizer.add_datasample(name, image, sample, **options)


class _KeptPicture(BaseVisBackend):
    """Where a visualizer puts a picture that goes into no file."""

    def __init__(self) -> None:
        super().__init__(save_dir='')

    experiment = None

    def _init_env(self) -> None:
        pass

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: object) -> None:
        self.picture = image


def with_mask_arrays(sample: BaseDataElement) -> BaseDataElement:
    """A prediction whose masks, where they are in run-length code, are what a visualizer takes.

    Left out where they would not fit into memory.
    """
    instances = sample.get('pred_instances')
    if instances is None or not isinstance(instances.get('masks'), list):
        return sample
    codes = instances.masks
    instances, sample = instances.clone(), sample.clone()  # each of its own level alone
    pixels = sum(code['size'][0] * code['size'][1] for code in codes)
    if not codes or pixels > MASKS_DRAWN:
        del instances.masks
    else:
        masks = np.stack([coco_mask.decode(code) for code in codes])
        instances.masks = torch.from_numpy(masks).bool()
    sample.pred_instances = instances
    return sample


class VideoFile:
    """An MP4 of pictures of one size, written beside its place and put there when it is closed.

    Raises:
        UserError: OpenCV cannot write one there.
    """

    def __init__(self, path: Path, rate: float, shape: tuple[int, ...]) -> None:
        self.path, self._size = path, (shape[1], shape[0])
        self._beside = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
        code = cv2.VideoWriter_fourcc(*'mp4v')
        self._writer = cv2.VideoWriter(str(self._beside), code, rate, self._size)
        if not self._writer.isOpened():
            raise cli.UserError(f'{path}: OpenCV cannot write this video')

    def add(self, picture: np.ndarray) -> None:
        if picture.shape[1::-1] != self._size:  # OpenCV would drop it without a word
            picture = cv2.resize(picture, self._size)
        self._writer.write(mmcv.rgb2bgr(picture))

    def __enter__(self) -> 'VideoFile':
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.release()
        os.replace(self._beside, self.path)
