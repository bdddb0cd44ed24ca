#!/usr/bin/env python
"""Seconds that a picture takes in PyTorch, and as a file of tools/export_onnx.py in the runtimes.

Each way goes from the picture's pixels to boxes and masks, or to a label map, of the picture's
size: what tools/test.py and tools/test_onnx.py compute, but for reading the picture. The ways take
turns, one picture each a round, since a machine's speed changes; the first round is not counted.
The processor's seconds, of all threads together, change less where other work runs beside. With one
way alone (--ways) the memory of the whole process is told too.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from support import cli
from support.benchmarking.case import machine
from support.config import read_config
from support.exported import Detections, ExportedModel
from support.exported.evaluating import instances
from support.exported.pictures import read, resize
from support.exported.runtimes import need
from support.exporting import graph
from support.one_image import paint
from support.prediction.model import build, predictor, resized_to

TORCH = 'pytorch'
IN_RUNTIMES = {
    'onnxruntime': ('onnxruntime', 'f32'),
    'openvino-f32': ('openvino', 'f32'),
    'openvino-auto': ('openvino', 'auto'),
}
"""Runtime and precision."""
PAINTED = (800, 1344)

Way = Callable[[np.ndarray], object]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('files', nargs='+', metavar='FILE.onnx')
    parser.add_argument('--image', metavar='IMAGE', help='(a painted one)')
    parser.add_argument(
        '--shape', nargs=2, type=int, metavar=('H', 'W'), help='at the model (as the config says)'
    )
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='(5)')
    parser.add_argument('--threads', type=int, metavar='N', help='(one a core)')
    ways = [TORCH, *IN_RUNTIMES]
    parser.add_argument('--ways', nargs='+', choices=ways, default=ways, help='(all)')
    cli.add_cfg_options(parser)
    args = parser.parse_args()
    for name in ('rounds', 'threads'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise cli.UserError(f'--{name} {getattr(args, name)}: give 1 or more')
    if args.shape and min(args.shape) < graph.LEAST:
        raise cli.UserError(f'--shape {args.shape}: give {graph.LEAST} pixels or more a side')
    args.shape = tuple(args.shape) if args.shape else None
    return args


def in_torch(cfg: Config, checkpoint: str) -> Way:
    """The model, as tools/test.py has it."""
    model, _ = build(cfg, checkpoint, 'cpu')
    predict = predictor(model, cfg)
    return lambda picture: predict([picture])


def opened(path: str, way: str, shape: tuple[int, int] | None, threads: int) -> ExportedModel:
    """A file in a runtime, which takes pictures of that height and width.

    Raises:
        UserError: it finds nothing, or is for another size.
    """
    runtime, precision = IN_RUNTIMES[way]
    model = ExportedModel(path, runtime, threads, precision)
    if model.task == 'features':
        raise cli.UserError(f'{path}: holds the backbone alone, which finds nothing')
    fixed = tuple(model.run.shape[2:])
    if None not in fixed and shape != fixed:
        raise cli.UserError(f'{path}: is for one size; give --shape {fixed[0]} {fixed[1]}')
    if shape:
        model.metadata = replace(model.metadata, scale=shape[::-1], keep_ratio=False)
    return model


def in_runtime(model: ExportedModel) -> Way:
    """With the masks in the picture's size that a detector in PyTorch gives."""

    def find(picture: np.ndarray) -> object:
        found = model.predict(picture)
        return instances(found) if isinstance(found, Detections) else found

    return find


def measure(ways: dict[str, Way], picture: np.ndarray, rounds: int) -> dict[str, list[tuple]]:
    """Seconds of each way and round, by the clock and of the processor."""
    seconds = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, find in ways.items():
            start = time.perf_counter(), time.process_time()
            find(picture)
            seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {name: each[1:] for name, each in seconds.items()}


def lines(seconds: dict[str, list[tuple]]) -> list[str]:
    """A way each: median, least and most, and how it compares with the first."""
    clock, processor = (
        {name: statistics.median(pair[i] for pair in each) for name, each in seconds.items()}
        for i in (0, 1)
    )
    first = next(iter(seconds))
    told = []
    for name, each in seconds.items():
        least, most = min(each)[0], max(each)[0]
        line = f'{name}: {clock[name]:.3f} ({least:.3f} to {most:.3f}) s'
        line += f', of the processor {processor[name]:.3f} s'
        if name != first:
            faster, cheaper = (kind[first] / kind[name] for kind in (clock, processor))
            line += f'; {faster:.2f} ({cheaper:.2f}) times as fast as {first}'
        told.append(line)
    return told


def main() -> None:
    args = parse_args()
    for way in args.ways:
        if way != TORCH:
            need(IN_RUNTIMES[way][0])
    cfg = read_config(args.config, args.cfg_options)
    cli.weights_file(args.checkpoint, 'checkpoint')
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.image:
        picture = read(cli.existing_file(args.image, '--image'))
    else:
        picture = mmcv.bgr2rgb(paint(*(args.shape or PAINTED)))
    if args.shape:
        cfg, picture = resized_to(cfg, args.shape), resize(picture, args.shape)

    ways = {}
    for way in [TORCH, *IN_RUNTIMES]:
        if way == TORCH and way in args.ways:
            ways[way] = in_torch(cfg, args.checkpoint)
        elif way in args.ways:
            for file in args.files:
                name = way if len(args.files) == 1 else f'{way} {Path(file).name}'
                model = opened(file, way, args.shape, torch.get_num_threads())
                ways[name] = in_runtime(model)
    here = machine('cpu')
    print(
        f'{here["machine"]}, threads: {here["used_threads"]}, torch {here["torch"]}; a picture of '
        f'{picture.shape[0]} x {picture.shape[1]}, rounds: {args.rounds}, medians',
        flush=True,
    )
    print('\n'.join(lines(measure(ways, picture, args.rounds))))
    if len(ways) == 1:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f'memory of the process, at most: {peak:.2f} GB')


if __name__ == '__main__':
    cli.run(main)
