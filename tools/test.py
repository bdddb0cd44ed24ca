#!/usr/bin/env python
"""Evaluate a detector or a segmentor; the metrics also go to WORK_DIR/TIME/TIME.json."""

import argparse
import os

from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS
from mmengine.runner import Runner
from support import checks, cli
from support.config import build_runner, load_config


@METRICS.register_module()
class DumpSegResults(DumpResults):
    """Predicted maps without the logits and the truth: those are 300 times the size."""

    def process(self, data_batch: dict, data_samples: list[dict]) -> None:
        keep = ('pred_sem_seg', 'img_path', 'ori_shape')
        super().process(data_batch, [{k: s[k] for k in keep if k in s} for s in data_samples])


@HOOKS.register_module()
class SegPicturesHook(Hook):
    """One picture an image, by its name; mmseg's hook can not choose the place."""

    def __init__(self, out_dir: str) -> None:
        self.out_dir = out_dir

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: list
    ) -> None:
        import mmcv

        for sample in outputs:
            name = os.path.splitext(os.path.basename(sample.img_path))[0] + '.png'
            runner.visualizer.add_datasample(
                name,
                mmcv.imfrombytes(get(sample.img_path), channel_order='rgb'),
                data_sample=sample,
                with_labels=False,
                out_file=os.path.join(self.out_dir, name),
            )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--out', metavar='FILE.pkl', help='write the predictions')
    parser.add_argument('--show-dir', help='write pictures of the predictions')
    cli.add_arguments(parser)
    return parser.parse_args()


def write_outputs(cfg: Config, out: str | None, show_dir: str | None) -> None:
    """Add to ``cfg`` what writes the predictions and the pictures."""
    segmentation = cfg.default_scope == 'mmseg'
    if out:
        if not out.endswith(('.pkl', '.pickle')):
            raise cli.UserError(f'--out {out}: give a file that ends in .pkl')
        dump = 'DumpSegResults' if segmentation else 'DumpDetResults'
        metrics = cfg.test_evaluator
        cfg.test_evaluator = [
            *(metrics if isinstance(metrics, list) else [metrics]),
            dict(type=dump, out_file_path=out),
        ]
    if show_dir:
        show_dir = os.path.abspath(show_dir)
        if segmentation:
            os.makedirs(show_dir, exist_ok=True)
            hook = dict(type='SegPicturesHook', out_dir=show_dir)
            cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
        else:
            cfg.default_hooks.visualization.update(draw=True, test_out_dir=show_dir)


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    cfg.load_from = cli.existing_file(args.checkpoint, 'checkpoint')
    write_outputs(cfg, args.out, args.show_dir)
    checks.check_data(cfg, ('test',))

    runner = build_runner(cfg)
    checks.build_loops(runner, ('test',))
    with checks.naming_label_maps(cfg, ('test',)):
        runner.test()


if __name__ == '__main__':
    cli.run(main)
