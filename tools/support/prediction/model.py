"""The model with its weights, and the way of pictures through it: mmdet's or mmseg's pipeline."""

import copy
import re
from collections.abc import Callable

import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import nn

from backbone.weights.match import load_model
from support import cli

Predict = Callable[[list[np.ndarray]], list[BaseDataElement]]
"""From pictures (H, W, 3), RGB, uint8, of one shape, to a prediction of each."""


def build(cfg: Config, checkpoint: str, device: str) -> tuple[nn.Module, BaseDataset]:
    """A model with the checkpoint's weights and class names, and the config's data set, unread."""
    if cfg.default_scope == 'mmseg':
        from mmseg.apis import init_model as init
    else:
        from mmdet.apis import init_detector as init
    init_default_scope(cfg.default_scope)
    try:
        model = init(cfg, device=device)
    except (ValueError, TypeError, KeyError, AssertionError, RuntimeError) as error:
        raise cli.UserError(f'{cfg.filename}: cannot be built: {cli.one_line(error)}') from error
    meta = load_model(model, checkpoint).get('meta') or {}
    dataset = {**cfg.test_dataloader.dataset, 'lazy_init': True, 'pipeline': []}
    dataset = DATASETS.build(dataset)
    # a file trained by mmengine names its classes; an older one has them as the config's data set
    model.dataset_meta = {**dataset.metainfo, **(meta.get('dataset_meta') or {})}
    return model, dataset


def predictor(model: nn.Module, cfg: Config) -> Predict:
    """What predicts a batch.

    mmdet's and mmseg's inferencers do the same with files, but read a config from its file, without
    what ``--cfg-options`` changed.
    """
    pipeline = Compose(test_pipeline(cfg))

    def predict(pictures: list[np.ndarray]) -> list[BaseDataElement]:
        data = [pipeline(dict(img=mmcv.rgb2bgr(picture), img_id=0)) for picture in pictures]
        with torch.no_grad():
            return model.test_step(pseudo_collate(data))

    return predict


def test_pipeline(cfg: Config) -> list[dict]:
    """The config's test pipeline, from pixels instead of a file, without annotations."""
    steps = []
    for step in copy.deepcopy(cfg.test_dataloader.dataset.pipeline):
        name = getattr(step.type, '__name__', step.type).rpartition('.')[-1]
        if name == 'LoadImageFromFile':
            step.update(type=f'{cfg.default_scope}.LoadImageFromNDArray')
        if not re.fullmatch(r'Load\w*Annotations', name):
            steps.append(step)
    return steps
