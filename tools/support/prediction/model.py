"""The model with its weights, and the way of pictures through it: its framework's pipeline."""

import copy
import re
from collections.abc import Callable

import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
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
    elif cfg.default_scope == 'mmpretrain':
        init = _init_classifier
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
    if cfg.default_scope == 'mmpretrain':  # folders of classes are not looked at
        numbers = map(str, range(cfg.model.head.num_classes))
        model.dataset_meta.setdefault('classes', tuple(numbers))
    return model, dataset


def _init_classifier(cfg: Config, device: str) -> nn.Module:
    """As mmdet's and mmseg's functions do; mmpretrain's looks the model up by its name."""
    return revert_sync_batchnorm(MODELS.build(cfg.model)).to(device).eval()


def predictor(model: nn.Module, cfg: Config) -> Predict:
    """What predicts a batch.

    mmdet's and mmseg's inferencers do the same with files, but read a config from its file, without
    what ``--cfg-options`` changed.
    """
    pipeline = Compose(test_pipeline(cfg))
    # what is loaded from files is BGR; CIFAR's images, which are not, are RGB
    from_files = any(_kind(step) in LOADS for step in cfg.test_dataloader.dataset.pipeline)

    def predict(pictures: list[np.ndarray]) -> list[BaseDataElement]:
        pixels = map(mmcv.rgb2bgr, pictures) if from_files else pictures
        data = [pipeline(_loaded(each)) for each in pixels]
        with torch.no_grad():
            return model.test_step(pseudo_collate(data))

    return predict


def test_pipeline(cfg: Config) -> list[dict]:
    """The config's test pipeline, from pixels instead of a file, without annotations."""
    steps = []
    for step in copy.deepcopy(cfg.test_dataloader.dataset.pipeline):
        name = _kind(step)
        if name == 'LoadImageFromFile' and cfg.default_scope == 'mmpretrain':
            continue  # which has no other step for it: see _loaded
        if name == 'LoadImageFromFile':
            step.update(type=f'{cfg.default_scope}.LoadImageFromNDArray')
        if not re.fullmatch(r'Load\w*Annotations', name):
            steps.append(step)
    return steps


def resized_to(cfg: Config, shape: tuple[int, int]) -> Config:
    """The config with a test pipeline that makes each picture of that height and width."""
    cfg = copy.deepcopy(cfg)
    for step in cfg.test_dataloader.dataset.pipeline:
        if _kind(step) == 'Resize':
            step.update(scale=tuple(shape[::-1]), keep_ratio=False)
    return cfg


LOADS = ('LoadImageFromFile', 'LoadImageFromNDArray')


def _kind(step: dict) -> str:
    return getattr(step['type'], '__name__', step['type']).rpartition('.')[-1]


def _loaded(pixels: np.ndarray) -> dict:
    """What a pipeline begins with, for an image (H, W, 3) that is there already."""
    shape = pixels.shape[:2]
    return dict(img=pixels, img_id=0, img_shape=shape, ori_shape=shape)
