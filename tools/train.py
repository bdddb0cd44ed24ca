#!/usr/bin/env python
"""Train a detector, a segmentor or a classifier from a config."""

import argparse
import os

from support import checks, cli
from support.config import build_runner, check_work_dir, load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='FILE',
        help='go on from FILE, or from the last checkpoint of the work directory',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision, where there is a GPU')
    cli.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    check_work_dir(cfg)
    if args.amp and not cfg.optim_wrapper.get('type', 'OptimWrapper').startswith('Amp'):
        cfg.optim_wrapper.type = 'AmpWhereAvailable'
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    for key in ('load_from', 'pretrained'):
        if cfg.get(key):
            cli.weights_file(cfg[key], 'checkpoint')
    if not args.no_check:
        checks.check_data(cfg, ('train', 'val'))

    runner = build_runner(cfg)
    checks.build_loops(runner, ('train', 'val'))
    try:
        with checks.naming_label_maps(cfg, ('train', 'val')):
            runner.train()
    except KeyboardInterrupt as stop:
        if not os.path.exists(os.path.join(cfg.work_dir, 'last_checkpoint')):
            raise
        raise KeyboardInterrupt('training goes on from its last checkpoint with --resume') from stop


if __name__ == '__main__':
    cli.run(main)
