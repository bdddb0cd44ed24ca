"""An exported model as a function of a picture; resizing is the config's, from the metadata."""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from support.cli import UserError
from support.exported.masks import paste
from support.exported.metadata import Metadata
from support.exported.runtimes import open_file

INTERPOLATIONS = {
    'nearest': cv2.INTER_NEAREST,
    'bilinear': cv2.INTER_LINEAR,
    'bicubic': cv2.INTER_CUBIC,
    'area': cv2.INTER_AREA,
    'lanczos': cv2.INTER_LANCZOS4,
}


@dataclass(frozen=True)
class Detections:
    """What a detector finds in a picture, the surest first.

    Attributes:
        boxes: xyxy in pixels of the picture, (N, 4) float32.
        scores: (N,) float32.
        labels: (N,) int64, places in the classes.
        masks: probabilities over the box, (N, 28, 28) float32; None of a detector without masks.
        height, width: of the picture.
        threshold: least probability of a mask's pixel.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    height: int
    width: int
    threshold: float = 0.5

    def above(self, score: float) -> 'Detections':
        """Those with at least that score."""
        kept = self.scores >= score
        masks = None if self.masks is None else self.masks[kept]
        return replace(
            self,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            labels=self.labels[kept],
            masks=masks,
        )

    def full_masks(self) -> np.ndarray | None:
        """Masks of the picture, (N, height, width) bool; None of a detector without masks."""
        if self.masks is None:
            return None
        return paste(self.masks, self.boxes, self.height, self.width, self.threshold)


class ExportedModel:
    """A file of tools/export_onnx.py in a runtime.

    One serves several threads; OpenVINO takes one call after the other.

    Args:
        path: the file.
        runtime: ``'onnxruntime'`` or ``'openvino'``.
        threads: how many; None takes a thread a core.
        precision: ``'f32'``, or with OpenVINO ``'auto'``: bfloat16 where the processor has it.

    Attributes:
        metadata: :class:`Metadata`; the following are of it.
        task: ``'detection'``, ``'segmentation'`` or ``'features'``.
        name: of the model's config.
        classes: their names, by label.
        palette: a colour (R, G, B) a class.

    Raises:
        UserError: no such file, no file of ours, a runtime that is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        runtime: str = 'onnxruntime',
        threads: int | None = None,
        precision: str = 'f32',
    ) -> None:
        path = str(path)
        self.run = open_file(path, runtime, threads, precision)
        try:
            self.metadata = Metadata.from_text(self.run.metadata)
        except ValueError as error:
            raise UserError(f'{path}: {error}; make it with tools/export_onnx.py') from error
        self.task, self.name = self.metadata.task, self.metadata.model
        self.classes, self.palette = self.metadata.classes, self.metadata.palette

    def predict(self, image: np.ndarray) -> Detections | np.ndarray:
        """What the model finds in a picture (H, W, 3), RGB, uint8.

        Returns:
            :class:`Detections`, or of a segmentor the class of each pixel, (H, W) int64.

        Raises:
            ValueError: no such picture, or a file of the backbone alone.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f'a picture is (H, W, 3) of uint8, not {image.shape} {image.dtype}')
        if self.task == 'features':
            raise ValueError('the file holds the backbone alone, which predicts nothing')
        pixels, height, width = self.prepare(image)
        outputs = self.run(pixels)
        if self.task == 'segmentation':
            return self._labels(outputs, image, pixels, height, width)
        return self._detections(outputs, image, height, width)

    def prepare(self, image: np.ndarray) -> tuple[np.ndarray, int, int]:
        """A picture as the file takes it: (1, 3, H, W) float32, and height and width without
        padding, which only a file of one fixed shape needs."""
        height, width = self._size(*image.shape[:2])
        if (height, width) != image.shape[:2]:
            how = INTERPOLATIONS[self.metadata.interpolation]
            image = cv2.resize(image, (width, height), interpolation=how)
        pixels = image.transpose(2, 0, 1)[None].astype(np.float32)
        fixed = self.run.shape[2:]
        if None not in fixed and (height, width) != tuple(fixed):
            mean = np.array(self.metadata.mean, dtype=np.float32)[None, :, None, None]
            padded = np.broadcast_to(mean, (1, 3, *fixed)).copy()
            padded[:, :, :height, :width] = pixels
            pixels = padded
        return np.ascontiguousarray(pixels), height, width

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a picture is resized to."""
        scale, keep_ratio = self.metadata.scale, self.metadata.keep_ratio
        fixed = self.run.shape[2:]
        if None not in fixed:  # whatever the picture, it has to fit
            if not keep_ratio:
                return tuple(fixed)
            factor = min(fixed[0] / height, fixed[1] / width)
        elif scale is None:
            return height, width
        elif not keep_ratio:
            return scale[1], scale[0]
        else:
            factor = min(
                max(scale) / max(height, width),
                min(scale) / min(height, width),
            )
        # as mmcv rounds
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))

    def _detections(
        self, outputs: dict[str, np.ndarray], image: np.ndarray, height: int, width: int
    ) -> Detections:
        factors = np.array([width / image.shape[1], height / image.shape[0]] * 2, dtype=np.float32)
        limits = np.array([width, height] * 2, dtype=np.float32)
        return Detections(
            boxes=np.clip(outputs['boxes'], 0, limits) / factors,
            scores=outputs['scores'].copy(),
            labels=outputs['labels'].astype(np.int64),
            masks=outputs['masks'].copy() if 'masks' in outputs else None,
            height=image.shape[0],
            width=image.shape[1],
            threshold=self.metadata.mask_threshold,
        )

    def _labels(
        self,
        outputs: dict[str, np.ndarray],
        image: np.ndarray,
        pixels: np.ndarray,
        height: int,
        width: int,
    ) -> np.ndarray:
        """mmseg resizes twice before it decides: to the input's size, then to the picture's."""
        if image.shape[:2] == pixels.shape[2:]:
            return outputs['labels'][0].astype(np.int64)
        logits = np.ascontiguousarray(outputs['logits'][0].transpose(1, 2, 0))  # (h, w, classes)
        logits = _resize(logits, *pixels.shape[2:])[:height, :width]
        return _resize(logits, *image.shape[:2]).argmax(axis=2)


def _resize(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Logits (h, w, classes) at another size, bilinear, in slabs of what OpenCV takes at once."""
    slabs = [
        cv2.resize(logits[:, :, i : i + 4], (width, height), interpolation=cv2.INTER_LINEAR)
        for i in range(0, logits.shape[2], 4)
    ]
    return np.concatenate([slab.reshape(height, width, -1) for slab in slabs], axis=2)
