#!/usr/bin/env python
"""Evaluate a detector, segmentor or classifier; the metrics also go to WORK_DIR/TIME/TIME.json."""

import argparse

from mmengine.runner import Runner
from support import checks, cli
from support.bfloat16 import add_bf16, use_bfloat16
from support.config import build_runner, check_work_dir, load_config
from support.outputs import add_outputs, problems


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--out', metavar='FILE.pkl', help='write the predictions')
    parser.add_argument('--show-dir', help='write pictures of the predictions')
    add_bf16(parser)
    cli.add_arguments(parser)
    return parser.parse_args()


def say_what_padding_does(runner: Runner) -> None:
    """Detection in batches: padded to the largest image, which is not what papers report."""
    size = runner.cfg.test_dataloader.get('batch_size', 1)
    if size > 1 and runner.cfg.default_scope == 'mmdet':
        runner.logger.warning(
            f'test_dataloader.batch_size={size}: images of a batch are padded to the largest of '
            'them, which changes AP a little; published numbers are of one image at a time.'
        )


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    check_work_dir(cfg)
    cfg.load_from = cli.weights_file(args.checkpoint, 'checkpoint')
    add_outputs(cfg, args.out, args.show_dir)
    if not args.no_check:
        checks.check_data(cfg, ('test',))

    runner = build_runner(cfg)
    checks.build_loops(runner, ('test',))
    say_what_padding_does(runner)
    if args.bf16:
        use_bfloat16(runner.model, runner.logger.warning)
    with checks.naming_label_maps(cfg, ('test',)):
        runner.test()
    if unwritten := problems(runner):
        raise cli.UserError('; '.join(unwritten))


if __name__ == '__main__':
    cli.run(main)
