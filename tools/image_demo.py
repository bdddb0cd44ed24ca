#!/usr/bin/env python
"""Pictures of what a trained detector or segmentor finds, and the findings as JSON."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from mmengine.structures import BaseDataElement
from support import cli
from support.config import read_config
from support.files import atomic_write, check_folder, picture_names
from torch import nn

from backbone.weights.match import load_model

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='image files or folders')
    parser.add_argument('--out-dir', default='predictions', help='(predictions)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='least score shown (0.3)')
    parser.add_argument('--device', default=get_device(), help='cuda:0, cpu, ... (GPU if any)')
    cli.add_cfg_options(parser)
    return parser.parse_args()


def find_images(names: list[str]) -> list[Path]:
    """The files named, and the images of the folders named, sorted; each file once."""
    found = []
    for path in map(Path, names):
        if path.is_dir():
            try:
                inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            except OSError as error:
                raise cli.UserError(f'{path}: {error.strerror}') from error
            if not inside:
                raise cli.UserError(f'{path}: no images in this folder ({", ".join(SUFFIXES)})')
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise cli.UserError(f'{path}: no such file or folder')
    return list({os.path.abspath(path): path for path in found}.values())


def read_image(path: Path) -> np.ndarray:
    """The image's pixels (H, W, 3), RGB, uint8.

    Raises:
        ValueError: what is there is no image that can be decoded whole; says why.
    """
    try:
        content = path.read_bytes()
        picture = mmcv.imfrombytes(content, channel_order='rgb') if content else None
    except OSError as error:
        raise ValueError(error.strerror) from error
    except cv2.error as error:
        raise ValueError('no image that can be decoded') from error
    if picture is None:
        raise ValueError('no image that can be decoded')
    return picture


def build(cfg: Config, checkpoint: str, device: str) -> tuple[nn.Module, Callable]:
    """A model with the checkpoint's weights and class names, and its framework's inference call."""
    if cfg.default_scope == 'mmseg':
        # mmseg reads this copy, which --cfg-options test_dataloader... would not reach
        cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline
        from mmseg.apis import inference_model as infer
        from mmseg.apis import init_model as init
    else:
        from mmdet.apis import inference_detector as infer
        from mmdet.apis import init_detector as init
    init_default_scope(cfg.default_scope)
    try:
        model = init(cfg, device=device)
    except (ValueError, TypeError, KeyError, AssertionError, RuntimeError) as error:
        raise cli.UserError(f'{cfg.filename}: cannot be built: {cli.one_line(error)}') from error
    meta = load_model(model, checkpoint).get('meta') or {}
    dataset = {**cfg.test_dataloader.dataset, 'lazy_init': True, 'pipeline': []}
    # a file trained by mmengine names its classes; an older one has them as the config's data set
    model.dataset_meta = {**DATASETS.build(dataset).metainfo, **(meta.get('dataset_meta') or {})}
    return model, infer


def findings(sample: BaseDataElement, classes: tuple[str, ...], score_thr: float) -> Any:
    """What is worth keeping of a prediction, as JSON: objects, or the share of each class."""
    if 'pred_sem_seg' in sample:
        labels, counts = np.unique(sample.pred_sem_seg.data.cpu().numpy(), return_counts=True)
        shares = counts / counts.sum()
        return {classes[i]: round(float(s), 4) for i, s in zip(labels, shares, strict=True)}
    instances = sample.pred_instances.cpu()
    instances = instances[instances.scores >= score_thr]
    return [
        {'class': classes[label], 'score': round(score, 4), 'box_xyxy': [round(x, 1) for x in box]}
        for label, score, box in zip(
            instances.labels.tolist(),
            instances.scores.tolist(),
            instances.bboxes.tolist(),
            strict=True,
        )
    ]


def demo(
    images: list[Path], predict: Callable[[Path, np.ndarray, Path], Any], out: Path
) -> list[Path]:
    """Write a picture of every image, and of what is found in all of them one file of JSON.

    Args:
        predict: writes an image's picture to the place given, and returns what is found.

    Returns:
        The images that could not be read.
    """
    places = picture_names(map(str, images), '{}.png'.format)
    found, unreadable = {}, []
    try:
        for i, path in enumerate(images, start=1):
            try:
                picture = read_image(path)
            except ValueError as error:
                print(f'{path}: {error}; left out', file=sys.stderr, flush=True)
                unreadable.append(path)
                continue
            place = out / places[str(path)]
            found[str(path)] = predict(path, picture, place)
            print(f'{i}/{len(images)} {place}', flush=True)
    except KeyboardInterrupt:
        kept = f'{len(found)} of {len(images)} images are in {out / "predictions.json"}'
        raise KeyboardInterrupt(kept) from None
    finally:
        atomic_write(out / 'predictions.json', json.dumps(found, indent=1))
    return unreadable


def main() -> None:
    args = parse_args()
    cfg = read_config(args.config, args.cfg_options)
    cli.weights_file(args.checkpoint, 'checkpoint')
    images = find_images(args.images)
    check_folder(args.out_dir, '--out-dir')
    model, infer = build(cfg, args.checkpoint, args.device)
    visualizer = VISUALIZERS.build({**cfg.visualizer, 'vis_backends': []})
    visualizer.dataset_meta = model.dataset_meta
    options = {} if cfg.default_scope == 'mmseg' else {'pred_score_thr': args.score_thr}

    def predict(path: Path, picture: np.ndarray, place: Path) -> Any:
        sample = infer(model, mmcv.rgb2bgr(picture))
        visualizer.add_datasample(
            path.name, picture, sample, draw_gt=False, out_file=str(place), **options
        )
        return findings(sample, model.dataset_meta['classes'], args.score_thr)

    out = Path(args.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    unreadable = demo(images, predict, out)
    if unreadable:
        raise cli.UserError(f'{len(unreadable)} of {len(images)} images could not be read')


if __name__ == '__main__':
    cli.run(main)
