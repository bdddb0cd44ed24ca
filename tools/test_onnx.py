#!/usr/bin/env python
"""Evaluate a file of tools/export_onnx.py as tools/test.py evaluates the model in PyTorch.

The config says data and metrics; its model is not built.
"""

import argparse

import numpy as np
from support import checks, cli
from support.config import build_runner, check_work_dir, load_config
from support.exported import ExportedModel
from support.exported.evaluating import FileModel
from support.exported.runtimes import PRECISIONS, RUNTIMES
from support.outputs import add_outputs, problems


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('file', metavar='FILE.onnx')
    parser.add_argument('--runtime', choices=list(RUNTIMES), default='onnxruntime')
    parser.add_argument(
        '--precision',
        choices=PRECISIONS,
        default='f32',
        help='auto lets OpenVINO take bfloat16 where the processor has it (f32)',
    )
    parser.add_argument('--out', metavar='FILE.pkl', help='write the predictions')
    parser.add_argument('--show-dir', help='write pictures of the predictions')
    cli.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    check_work_dir(cfg)
    segmentation = cfg.default_scope == 'mmseg'
    file = ExportedModel(args.file, args.runtime, precision=args.precision)
    task = 'segmentation' if segmentation else 'detection'
    if file.task != task:
        raise cli.UserError(f'{args.file}: its task is {file.task}, the config is of {task}')
    add_outputs(cfg, args.out, args.show_dir)
    if not args.no_check:
        checks.check_data(cfg, ('test',))
    cfg.model = dict(type=FileModel, file=args.file, runtime=args.runtime, precision=args.precision)
    cfg.load_from, cfg.resume = None, False

    runner = build_runner(cfg)
    checks.build_loops(runner, ('test',))
    classes = tuple(runner.test_dataloader.dataset.metainfo['classes'])
    if classes != file.classes:
        raise cli.UserError(
            f'{args.file}: its {len(file.classes)} classes are {", ".join(file.classes[:5])} ..., '
            f"the data set's {len(classes)} are {', '.join(classes[:5])} ..."
        )
    with checks.naming_label_maps(cfg, ('test',)):
        runner.test()
    seconds = np.median(runner.model.seconds)
    runner.logger.info(f'{args.runtime}: {seconds:.3f} s a picture (median)')
    if unwritten := problems(runner):
        raise cli.UserError('; '.join(unwritten))


if __name__ == '__main__':
    cli.run(main)
