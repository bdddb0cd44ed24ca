#!/usr/bin/env python
"""Where the time of tools/test.py goes, an image: loading, backbone, neck, heads, post-processing.

Each image goes the way of tools/test.py: the config's data set and test pipeline, the model's
``test_step``, the metric. A moment counts for the innermost part that runs, so the parts add up.

No data is needed: the image is painted, 640 pixels at its longer side as most of COCO's are, and
the pipeline resizes it to --shape. Nor are weights: with random ones the threshold on scores is set
so that --detections boxes (100) come out, since boxes, masks and their encoding cost by the object.
With CHECKPOINT and --image the model finds what it finds, unless --detections is given.

Loading is timed in this process; in tools/test.py workers load meanwhile.
"""

import argparse
import functools
import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from support import cli
from support.benchmarking.case import machine
from support.config import read_config
from support.files import atomic_write
from support.one_image import use_image
from torch import nn

from backbone.weights.match import load_model

DEFAULT_SHAPE = {'mmdet': (800, 1333), 'mmseg': (512, 2048)}

GROUPS = {
    'input': ('load', 'normalise'),
    'backbone': ('backbone',),
    'neck': ('neck',),
    'heads': (
        'RPN head',
        'RoI features',
        'encoder',
        'decoder',
        'box head',
        'pixel decoder',
        'mask head',
        'decode head',
    ),
    'post-processing': ('proposals', 'boxes', 'mask pasting', 'resize, argmax', 'encode'),
    'other': ('other',),
}
"""Every part by its group; ``encode`` turns masks into RLE for the metric, or maps into counts."""

CALLS = {
    'data_preprocessor': {'forward': 'normalise'},
    'backbone': {'forward': 'backbone'},
    'neck': {'forward': 'neck'},
    'rpn_head': {'forward': 'RPN head', 'predict_by_feat': 'proposals'},
    'bbox_head': {'forward': 'box head', 'predict_by_feat': 'boxes'},
    'roi_head.bbox_roi_extractor': {'forward': 'RoI features'},
    'roi_head.bbox_head': {'forward': 'box head', 'predict_by_feat': 'boxes'},
    'roi_head.mask_roi_extractor': {'forward': 'RoI features'},
    'roi_head.mask_head': {'forward': 'mask head', 'predict_by_feat': 'mask pasting'},
    'panoptic_head': {'forward': 'mask head', 'predict': 'mask pasting'},
    'panoptic_head.pixel_decoder': {'forward': 'pixel decoder'},
    'panoptic_fusion_head': {'predict': 'mask pasting'},
    'decode_head': {'forward': 'decode head', 'predict_by_feat': 'resize, argmax'},
    'decode_head.pixel_decoder': {'forward': 'pixel decoder'},
    '': {
        'forward_encoder': 'encoder',
        'forward_decoder': 'decoder',
        'postprocess_result': 'resize, argmax',
    },
}
"""By the place in a model: which call is which part."""


class Clock:
    """Seconds by part, since the last lap."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronize = torch.cuda.synchronize if device == 'cuda' else lambda: None
        self._running: list[str] = []  # the innermost last
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside for ``name``, except what a part inside counts."""
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def watch(self, owner: object, method: str, part: str) -> None:
        """Count every call of the method for ``part``."""
        call = getattr(owner, method)

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return call(*args, **kwargs)

        setattr(owner, method, timed)

    def lap(self) -> dict[str, float]:
        """The seconds by part, and begin again from zero."""
        seconds, self.seconds = self.seconds, {}
        return seconds

    def _charge(self) -> None:
        self._synchronize()
        now = time.perf_counter()
        if self._running:
            part = self._running[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now


# --- the model -----------------------------------------------------------------------------------


def build_model(cfg: Config, checkpoint: str | None, device: str) -> nn.Module:
    """The config's model in evaluation mode, with the checkpoint's weights or random ones."""
    torch.manual_seed(0)
    try:
        model = MODELS.build(cfg.model)
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise cli.UserError(f'{cfg.filename}: cannot be built: {cli.one_line(error)}') from error
    if checkpoint:
        load_model(model, checkpoint)
    else:
        model.init_weights()
    return model.to(device).eval()


def set_detections(model: nn.Module, batch: dict, number: int) -> None:
    """Set the threshold on scores so that ``number`` boxes of ``batch`` come out, if there are any.

    The boxes kept are the best after NMS, so a threshold just below the last one's score keeps the
    same ones and spares NMS the rest.
    """
    settings = _detecting_head(model).test_cfg
    settings.update(score_thr=0.0, max_per_img=number, max_per_image=number)
    scores = model.test_step(batch)[0].pred_instances.scores
    if len(scores):
        settings.score_thr = float(scores.min()) * (1 - 1e-5)


def _detecting_head(model: nn.Module) -> nn.Module | None:
    names = ('roi_head', 'bbox_head', 'panoptic_fusion_head')
    return next((head for name in names if (head := getattr(model, name, None))), None)


def watch(model: nn.Module, clock: Clock) -> dict[str, Any]:
    """Time the calls of a model; returns a dictionary to be filled with what it sees."""
    seen: dict[str, Any] = {}

    def see_input(module: nn.Module, args: tuple) -> None:
        seen['input'] = tuple(args[0].shape[2:])

    def see_proposals(module: nn.Module, args: tuple) -> None:
        seen['proposals'] = len(args[1])

    for place, calls in CALLS.items():
        for module in _modules(model, place):
            for method, part in calls.items():
                if hasattr(module, method):
                    clock.watch(module, method, part)
    model.backbone.register_forward_pre_hook(see_input)
    for extractor in _modules(model, 'roi_head.bbox_roi_extractor'):
        extractor.register_forward_pre_hook(see_proposals)
    return seen


def _modules(model: nn.Module, place: str) -> list[nn.Module]:
    """The modules at a dotted place: none, one, or a cascade's list."""
    node = model
    for name in filter(None, place.split('.')):
        node = getattr(node, name, None)
    if node is None:
        return []
    return list(node) if isinstance(node, nn.ModuleList) else [node]


# --- measuring -----------------------------------------------------------------------------------


@torch.no_grad()
def measure(
    cfg: Config, checkpoint: str | None, detections: int | None, images: int, device: str
) -> dict[str, Any]:
    """Seconds by part of each of ``images`` images, after one that is not counted."""
    model = build_model(cfg, checkpoint, device)
    loader = Runner.build_dataloader(cfg.test_dataloader)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    batches = iter(loader)

    batch = next(batches)
    if detections:
        set_detections(model, batch, detections)
    evaluator.process(model.test_step(batch), batch)

    clock = Clock(device)
    seen = watch(model, clock)
    laps = []
    for _ in range(images):
        with clock.part('other'):
            with clock.part('load'):
                batch = next(batches)
            outputs = model.test_step(batch)
            with clock.part('encode'):
                evaluator.process(outputs, batch)
        laps.append(clock.lap())
    if 'pred_instances' in outputs[0]:
        seen['detections'] = len(outputs[0].pred_instances)
    with clock.part('evaluate'):
        evaluator.evaluate(images + 1)
    return summary(laps) | seen | dict(evaluate=clock.lap()['evaluate'])


def summary(laps: list[dict[str, float]]) -> dict[str, Any]:
    """Median seconds of each part, in order, and their sum."""
    parts = []
    for group, names in GROUPS.items():
        for name in names:
            seconds = [lap[name] for lap in laps if name in lap]
            if seconds:
                median = statistics.median(seconds)
                parts.append(dict(part=name, group=group, median=median, seconds=seconds))
    return dict(images=len(laps), parts=parts, total=sum(part['median'] for part in parts))


def table(result: dict[str, Any]) -> str:
    """The parts in milliseconds, below the sums of their groups."""

    def row(name: str, seconds: float) -> str:
        return f'{name:20}{seconds * 1e3:12.1f}{seconds / result["total"]:9.1%}'

    rows = [f'{"":20}{"ms":>12}{"share":>9}']
    for group in GROUPS:
        parts = [part for part in result['parts'] if part['group'] == group]
        if parts:
            rows.append(row(group, sum(part['median'] for part in parts)))
        if [part['part'] for part in parts] != [group]:
            rows += [row(f'  {part["part"]}', part['median']) for part in parts]
    return '\n'.join([*rows, row('total', result['total'])])


# --- the command ---------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config')
    parser.add_argument('checkpoint', nargs='?', help='(random weights)')
    parser.add_argument('--image', metavar='FILE', help='instead of the painted one')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='800 1333 for detection, 512 2048 for segmentation; as the config says for --image',
    )
    parser.add_argument('--detections', type=int, help='how many come out; 100 without CHECKPOINT')
    parser.add_argument('--images', type=int, default=5, help='to take the median of (5)')
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='(GPU if any)')
    parser.add_argument('--threads', type=int, default=0, help='of the CPU; 0: as PyTorch chooses')
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write all seconds there')
    cli.add_cfg_options(parser)
    return parser.parse_args()


def check(args: argparse.Namespace, cfg: Config) -> None:
    """Refuse what can not be measured, and fill in what depends on the config."""
    for name in ('images', 'detections'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise cli.UserError(f'--{name} {getattr(args, name)}: must be at least 1')
    if args.shape and min(args.shape) < 32:
        raise cli.UserError(f'--shape {args.shape[0]} {args.shape[1]}: RMT takes 32 x 32 and up')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise cli.UserError(
            '--device cuda: no CUDA GPU is visible to PyTorch; leave the option out'
        )
    if args.json and not args.json.parent.is_dir():
        raise cli.UserError(f'--json {args.json}: there is no folder {args.json.parent}')
    if args.checkpoint:
        cli.weights_file(args.checkpoint, 'checkpoint')
    if cfg.default_scope not in DEFAULT_SHAPE:
        raise cli.UserError(f'{cfg.filename}: builds neither a detector nor a segmentor')
    if cfg.default_scope == 'mmseg' and args.detections:
        raise cli.UserError('--detections: a segmentor has none; leave the option out')
    if not args.image:
        args.shape = args.shape or DEFAULT_SHAPE[cfg.default_scope]
    if cfg.default_scope == 'mmdet' and not args.checkpoint:
        args.detections = args.detections or 100
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')


def main() -> None:
    args = parse_args()
    cfg = read_config(args.config, args.cfg_options)
    check(args, cfg)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = cfg.get('env_cfg', {}).get('cudnn_benchmark', False)
    init_default_scope(cfg.default_scope)
    MMLogger.get_instance('profile_inference', log_level='ERROR')  # how each layer was initialised
    shape = tuple(args.shape) if args.shape else None
    # the COCO API tells on stdout what it loads
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        use_image(cfg, Path(folder), args.image, shape, args.images + 1)
        result = measure(cfg, args.checkpoint, args.detections, args.images, args.device)
    result = dict(config=args.config, checkpoint=args.checkpoint, **machine(args.device), **result)

    counts = [f'{result[key]} {key}' for key in ('proposals', 'detections') if key in result]
    size = ' x '.join(map(str, result['input']))
    print(', '.join([f'{Path(args.config).stem}: the backbone sees {size}', *counts]))
    where = f'threads: {result["used_threads"]}, ' if args.device == 'cpu' else ''
    print(f'{result["machine"]}, {where}torch {result["torch"]}; images: {args.images}, medians')
    print(table(result))
    evaluate = f'{result["evaluate"] * 1e3:.1f} ms'
    print(f'besides, once at the end: the metric of {args.images + 1} images, {evaluate}')
    if args.json:
        atomic_write(args.json, json.dumps(result, indent=1))


if __name__ == '__main__':
    cli.run(main)
