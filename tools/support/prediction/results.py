"""Writing what is found: pictures and videos, label maps, predictions.json, COCO's results."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import mmcv
import numpy as np
from mmengine.structures import BaseDataElement

from support.files import atomic_write
from support.prediction.coco import CocoResults
from support.prediction.drawing import VideoFile
from support.prediction.findings import best_classes, label_map, named, objects, shares
from support.prediction.inputs import Picture, Source
from support.prediction.json_file import JsonFile
from support.prediction.places import Places


class Results:
    """Takes predictions in the order of their pictures; what was taken stays, however it ends.

    Args:
        draw: makes a picture (H, W, 3), RGB, uint8, of a picture and its prediction.
        meta: the model's classes and palette.
        masks: whether objects' masks are wanted; label maps are where they have places.
        coco: makes entries of COCO's results, where those have a place.
    """

    def __init__(
        self,
        places: Places,
        draw: Callable[[Picture, BaseDataElement], np.ndarray],
        meta: dict,
        score_thr: float,
        masks: bool = False,
        coco: CocoResults | None = None,
    ) -> None:
        self._places, self._draw, self._meta = places, draw, meta
        self._score_thr, self._masks, self._coco = score_thr, masks, coco
        self._source: Source | None = None
        self.path = places.found

    def __enter__(self) -> 'Results':
        self._files, self._video_files = ExitStack(), ExitStack()
        self._found = self._files.enter_context(_json(self._places.found))
        if self._coco:
            self._entries = self._files.enter_context(_json(self._places.coco, '[]'))
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._video_files.__exit__(kind, error, trace)
        finally:
            self._files.__exit__(kind, error, trace)

    def add(self, picture: Picture, sample: BaseDataElement) -> Path:
        """Write all that is wanted of a prediction; returns the place of its picture or video."""
        classes = self._meta['classes']
        if 'pred_sem_seg' in sample:
            found, kept = [], shares(sample, classes)
        elif 'pred_score' in sample:
            found, kept = [], named(best_classes(sample), classes)
        else:
            found = objects(sample, self._score_thr, self._masks)
            kept = named(found, classes)
        self._write_labels(picture, sample)
        place = self._write_picture(picture, self._draw(picture, sample))
        if picture.source.moves:
            self._found.add(dict(frame=picture.frame, seconds=picture.seconds, found=kept))
        else:
            self._found.add(kept, picture.source.name)
        if self._coco:
            for entry in self._coco.entries(picture, found):
                self._entries.add(entry)
        return place

    def _write_labels(self, picture: Picture, sample: BaseDataElement) -> None:
        place = self._places.labels.get(picture.source.name)
        if place:
            place = place / f'{picture.frame:06}.png' if picture.source.moves else place
            place.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(place, label_map(sample, self._meta))

    def _write_picture(self, picture: Picture, drawn: np.ndarray) -> Path:
        source = picture.source
        place = self._places.pictures[source.name]
        place.parent.mkdir(parents=True, exist_ok=True)
        if source != self._source:
            self._video_files.close()
            self._source = source
            if source.moves:
                self._video_files.enter_context(self._found.list(source.name))
                video = VideoFile(place, picture.rate, drawn.shape)
                self._video = self._video_files.enter_context(video)
        if source.moves:
            self._video.add(drawn)
        else:
            atomic_write(place, lambda beside: mmcv.imwrite(mmcv.rgb2bgr(drawn), str(beside)))
        return place


def _json(path: Path, ends: str = '{}') -> JsonFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    return JsonFile(path, ends)
