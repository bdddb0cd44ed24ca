#!/usr/bin/env python
"""Write a trained detector or segmentor as an ONNX file, which onnxruntime and OpenVINO run.

The file takes an image of any size, or with --shape of one. Before it is kept it has to find, in
onnxruntime, what the model finds in PyTorch.
"""

import argparse
import sys
import time
from pathlib import Path

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from support import cli
from support.config import read_config
from support.exported import ExportedModel
from support.exported.pictures import read, resize
from support.exported.runtimes import need
from support.exporting import build, comparing, describing, graph
from support.files import atomic_write, check_file
from support.one_image import paint
from support.prediction.model import build as build_model
from support.prediction.model import predictor, resized_to
from torch import nn

PICTURES = 3
PAINTED = [(480, 640), (640, 427), (375, 500)]
"""Height and width, as COCO's are."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('out', metavar='OUT.onnx')
    parser.add_argument('--part', choices=build.PARTS, default='model', help='(model)')
    parser.add_argument(
        '--shape', nargs=2, type=int, metavar=('H', 'W'), help='a file for images of this size'
    )
    parser.add_argument(
        '--images',
        nargs='+',
        metavar='IMAGE',
        help='to compare on (the first of the test data, or painted ones where there are none)',
    )
    cli.add_cfg_options(parser)
    args = parser.parse_args()
    if args.shape and min(args.shape) < graph.LEAST:
        raise cli.UserError(f'--shape {args.shape}: give {graph.LEAST} pixels or more a side')
    if Path(args.out).suffix != '.onnx':
        raise cli.UserError(f'{args.out}: give a file that ends in .onnx')
    return args


def pictures(given: list[str] | None, dataset: BaseDataset) -> tuple[list, str]:
    """What to compare on, RGB, and in words what it is."""
    if given:
        paths = [cli.existing_file(path, '--images') for path in given]
        return [read(path) for path in paths], 'the given images'
    try:
        dataset.full_init()
        paths = [dataset.get_data_info(i)['img_path'] for i in range(min(PICTURES, len(dataset)))]
        return [read(path) for path in paths], 'the first of the test data'
    except (OSError, cli.UserError):
        return [mmcv.bgr2rgb(paint(*size)) for size in PAINTED], 'painted ones, for want of data'


def check(
    file: Path, args: argparse.Namespace, cfg: Config, model: nn.Module, images: list[np.ndarray]
) -> None:
    """Compare, print what was found.

    Raises:
        UserError: they differ.
    """
    exported = ExportedModel(file)
    if exported.task == 'features':
        differences = comparing.compare_features(model, exported, images)
    else:
        if args.shape:
            cfg = resized_to(cfg, args.shape)
            images = [resize(image, args.shape) for image in images]
        kept = (model.test_cfg or {}).get('rcnn') or model.test_cfg or {}
        limits = kept.get('score_thr', 0.0), kept.get('max_per_img', sys.maxsize)
        differences = comparing.compare(predictor(model, cfg), exported, images, *limits)
    print('\n'.join(differences.lines()), flush=True)
    differences.check()
    if exported.task == 'detection' and not differences.objects:
        print('nothing was found in them: name images with objects by --images', flush=True)


def main() -> None:
    args = parse_args()
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        need(package)
    cfg = read_config(args.config, args.cfg_options)
    if cfg.default_scope not in ('mmdet', 'mmseg'):
        raise cli.UserError(f'{cfg.filename}: builds neither a detector nor a segmentor')
    cli.weights_file(args.checkpoint, 'checkpoint')
    check_file(args.out, 'OUT.onnx')
    model, dataset = build_model(cfg, args.checkpoint, 'cpu')
    model.eval()
    try:
        what = build.exportable(model, args.part)
        metadata = describing.describe(cfg, model, what, args.checkpoint)
    except build.NotExportable as error:
        raise cli.UserError(f'{cfg.filename} cannot be exported: {error}') from error

    images, whence = pictures(args.images, dataset)
    start = time.perf_counter()
    print(f'exporting {args.part}; this takes some minutes', flush=True)
    file = graph.export(what, tuple(args.shape) if args.shape else None)
    import onnx

    onnx.helper.set_model_props(file, metadata.to_text())
    file.producer_name = 'rmt-downstream'

    def write(path: Path) -> None:
        onnx.save(file, path)
        check(path, args, cfg, model, images)

    print(f'exported in {time.perf_counter() - start:.0f} s; comparing on {whence}', flush=True)
    atomic_write(args.out, write)
    size = Path(args.out).stat().st_size / 2**20
    print(f'{args.out}: {size:.0f} MB, {", ".join(what.module.outputs)}', flush=True)


if __name__ == '__main__':
    cli.run(main)
