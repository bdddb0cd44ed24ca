#!/usr/bin/env python
"""A page in the browser to try a trained detector, segmentor or classifier on pictures.

The model is CONFIG CHECKPOINT, or the one file that tools/export_onnx.py wrote. The page is served
on this machine alone unless --host says otherwise, and keeps nothing of its visitors. Ctrl-C ends
it.
"""

import argparse
import contextlib

from mmengine.device import get_device
from support import cli
from support.config import read_config
from support.web import server

HOST = '127.0.0.1'
PORT = 7860
MEGABYTES = 20.0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, usage='%(prog)s [options] CONFIG CHECKPOINT | FILE.onnx'
    )
    parser.add_argument('model', nargs='+', metavar='MODEL', help='config and checkpoint, or one')
    parser.add_argument('--host', default=HOST, help=f'address to listen on ({HOST})')
    parser.add_argument('--port', type=int, default=PORT, help=f'0 takes any ({PORT})')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='where the slider begins (0.3)'
    )
    parser.add_argument('--examples', metavar='FOLDER', help="pictures to try (the demo's)")
    parser.add_argument(
        '--max-mb', type=float, default=MEGABYTES, help=f'of a picture uploaded ({MEGABYTES:g})'
    )
    parser.add_argument('--device', help='cuda:0, cpu, ... (GPU if any)')
    cli.add_cfg_options(parser)
    args = parser.parse_args()
    if not 0 <= args.port < 2**16:
        raise cli.UserError(f'--port {args.port}: give a number from 0 to {2**16 - 1}')
    if not 0 <= args.score_thr <= 1:
        raise cli.UserError(f'--score-thr {args.score_thr}: give a score from 0 to 1')
    if not args.max_mb > 0:
        raise cli.UserError(f'--max-mb {args.max_mb:g}: give more than 0')
    args.exported = len(args.model) == 1 and args.model[0].endswith('.onnx')
    if args.exported and (args.device or args.cfg_options):
        raise cli.UserError(
            '--device, --cfg-options: are of a config, which FILE.onnx does not need'
        )
    if not args.exported and len(args.model) != 2:
        raise cli.UserError(f'{" ".join(args.model)}: give CONFIG CHECKPOINT, or one FILE.onnx')
    return args


def main() -> None:
    args = parse_args()
    with server.listen(args.host, args.port) as listening, server.upload_folder() as folder:
        server.need_gradio()  # now: it makes its folder when it is imported
        from support.web import examples, finder, page, uploads, visitors

        if args.exported:
            model = finder.from_exported(args.model[0])
        else:
            config, checkpoint = args.model
            cfg = read_config(config, args.cfg_options)
            cli.weights_file(checkpoint, 'checkpoint')
            model = finder.from_checkpoint(cfg, checkpoint, args.device or get_device())
        limits = uploads.Limits(args.max_mb)
        tries = examples.pictures(args.examples, folder)
        built = page.build(model, visitors.Visitors(folder), limits, tries, args.score_thr)
        serving = server.server(built, limits.bytes)
        host, port = listening.getsockname()[:2]
        print(f'http://{f"[{host}]" if ":" in host else host}:{port}  (Ctrl-C ends it)', flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            serving.run(sockets=[listening])


if __name__ == '__main__':
    cli.run(main)
