"""An exported file in the place of a model, for mmengine's test loop and the config's metrics."""

import time

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from support.exported import pictures
from support.exported.model import Detections, ExportedModel


@MODELS.register_module()
class FileModel(BaseModel):
    """What a test loop calls. It reads each picture from its place and resizes it by the file's
    metadata: what the pipeline did to it is not looked at.

    Args:
        file: the file.
        runtime, precision: as :class:`support.exported.ExportedModel` takes them.

    Attributes:
        seconds: of each picture, from its pixels to its boxes and masks or its label map.
    """

    def __init__(self, file: str, runtime: str, precision: str) -> None:
        super().__init__()
        self.exported = ExportedModel(file, runtime, precision=precision)
        self.seconds: list[float] = []

    def test_step(self, data: dict) -> list[BaseDataElement]:
        """Samples with what was found in them."""
        return [self.predict(sample) for sample in data['data_samples']]

    def predict(self, sample: BaseDataElement) -> BaseDataElement:
        picture = pictures.read(sample.img_path)
        start = time.perf_counter()
        found = self.exported.predict(picture)
        if isinstance(found, Detections):
            sample.pred_instances = instances(found)
        else:
            labels = torch.from_numpy(np.ascontiguousarray(found))
            sample.pred_sem_seg = PixelData(data=labels[None])
        self.seconds.append(time.perf_counter() - start)
        return sample

    def forward(self, *_: object) -> None:
        """Of BaseModel; a file is not trained."""
        raise NotImplementedError


def instances(found: Detections) -> InstanceData:
    """As mmdet's metrics take it."""
    masks = found.full_masks()
    return InstanceData(
        bboxes=torch.from_numpy(found.boxes),
        scores=torch.from_numpy(found.scores),
        labels=torch.from_numpy(found.labels),
        **({} if masks is None else {'masks': torch.from_numpy(masks)}),
    )
