"""What an exported file says of itself, from the config and the checkpoint."""

import datetime
import os
from pathlib import Path

import torch
from mmengine.config import Config
from support.exported.metadata import Metadata
from support.exported.model import INTERPOLATIONS
from support.exporting.build import Exportable, NotExportable
from support.prediction.model import test_pipeline
from torch import nn

from backbone.weights.fetch import sha256_of


def describe(cfg: Config, model: nn.Module, what: Exportable, checkpoint: str) -> Metadata:
    """The metadata of the file.

    Raises:
        NotExportable: the test pipeline does what it has no words for.
    """
    scale, keep_ratio, interpolation = None, True, 'bilinear'
    if what.task != 'features':
        scale, keep_ratio, interpolation = resizing(cfg)
    meta = model.dataset_meta
    rcnn = (cfg.model.get('test_cfg') or {}).get('rcnn') or {}
    palette = meta.get('palette')
    return Metadata(
        task=what.task,
        model=Path(cfg.filename).stem,
        classes=tuple(meta['classes']),
        palette=tuple(map(tuple, palette)) if isinstance(palette, (list, tuple)) else (),
        scale=scale,
        keep_ratio=keep_ratio,
        interpolation=interpolation,
        mean=tuple(what.mean.tolist()),
        mask_threshold=rcnn.get('mask_thr_binary', 0.5),
        provenance=dict(
            config=os.path.basename(cfg.filename),
            checkpoint=os.path.basename(checkpoint),
            checkpoint_sha256=digest(checkpoint),
            torch=torch.__version__,
            date=datetime.date.today().isoformat(),
        ),
    )


def resizing(cfg: Config) -> tuple[tuple[int, int] | None, bool, str]:
    """Scale, whether proportions stay, interpolation: of the one step that changes the picture."""
    found = None, True, 'bilinear'
    steps = [s for s in test_pipeline(cfg) if not is_named(s, 'Load', 'Pack')]
    for i, step in enumerate(steps):
        known = {'type', 'scale', 'keep_ratio', 'interpolation', 'clip_object_border', 'backend'}
        scale = step.get('scale')
        simple = isinstance(scale, (tuple, list)) and len(scale) == 2
        if i or not is_named(step, 'Resize') or set(step) - known or not simple:
            raise NotExportable(
                f'{cfg.filename}: its test pipeline has {dict(step)}; the file can say a single '
                'Resize with a scale (width, height)'
            )
        how = step.get('interpolation', 'bilinear')
        if how not in INTERPOLATIONS or step.get('backend', 'cv2') != 'cv2':
            raise NotExportable(f'{cfg.filename}: its test pipeline has {dict(step)}')
        found = tuple(scale), step.get('keep_ratio', False), how
    return found


def is_named(step: dict, *starts: str) -> bool:
    name = getattr(step['type'], '__name__', step['type']).rpartition('.')[-1]
    return name.startswith(starts)


def digest(path: str) -> str | None:
    """SHA-256 of a file; None of an address."""
    if not os.path.isfile(path):
        return None
    with open(path, 'rb') as file:
        return sha256_of(file)
