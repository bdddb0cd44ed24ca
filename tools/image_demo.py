#!/usr/bin/env python
"""Pictures of what a trained detector, segmentor or classifier finds, and the findings as JSON.

IMAGE is an image file, a folder of images, a video file, or the number of a camera.
"""

import argparse
import functools

from mmengine.device import get_device
from support import cli
from support.bfloat16 import add_bf16, use_bfloat16
from support.config import read_config
from support.prediction import places
from support.prediction.coco import CocoResults
from support.prediction.drawing import Drawing
from support.prediction.inputs import Reader, batches, find_sources
from support.prediction.model import Predict, build, predictor
from support.prediction.progress import Progress
from support.prediction.results import Results
from support.prediction.tiles import slide, tiled

OVERLAP = 0.25
MOST_OVERLAP = 0.9  # ten times the tiles of none
LEAST_TILE = 32  # the backbone's stride


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='files, folders, cameras')
    parser.add_argument('--out-dir', default='predictions', help='(predictions)')
    parser.add_argument('--overwrite', action='store_true', help='also what is there already')
    parser.add_argument('--score-thr', type=float, default=0.3, help='least score kept (0.3)')
    parser.add_argument(
        '--masks', action='store_true', help='masks in the JSON; of a segmentor label maps as PNG'
    )
    parser.add_argument('--coco-json', metavar='FILE', help="objects as COCO's results too")
    parser.add_argument('--batch-size', type=int, default=1, help='pictures at a time (1)')
    parser.add_argument(
        '--tile', type=int, metavar='SIZE', help='in parts of so many pixels a side'
    )
    parser.add_argument(
        '--overlap', type=float, metavar='SHARE', help=f'of neighbouring tiles ({OVERLAP})'
    )
    parser.add_argument('--frames', type=int, help='most frames of a video or camera (all)')
    add_bf16(parser)
    parser.add_argument('--device', default=get_device(), help='cuda:0, cpu, ... (GPU if any)')
    cli.add_cfg_options(parser)
    args = parser.parse_args()
    for name, least in dict(batch_size=1, frames=1, tile=LEAST_TILE).items():
        if (value := getattr(args, name)) is not None and value < least:
            raise cli.UserError(f'--{name.replace("_", "-")} {value}: give {least} or more')
    if args.overlap is None:
        args.overlap = OVERLAP
    elif not args.tile:
        raise cli.UserError('--overlap: is of tiles; give their --tile SIZE too')
    if not 0 <= args.overlap <= MOST_OVERLAP:
        raise cli.UserError(f'--overlap {args.overlap}: give a share from 0 to {MOST_OVERLAP}')
    return args


def demo(
    reader: Reader, predict: Predict, results: Results, progress: Progress, batch_size: int = 1
) -> None:
    """Predict what the reader reads, batch by batch, and write it.

    Raises:
        KeyboardInterrupt: as it came, with a text that says what is written.
        UserError: nothing can be written any more; says the same.
    """
    try:
        with results:
            for batch in batches(reader, batch_size):
                samples = predict([picture.pixels for picture in batch])
                for picture, sample in zip(batch, samples, strict=True):
                    place = results.add(picture, sample)
                    progress.written(str(place), at_once=not picture.frame)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(progress.kept(results.path)) from None
    except OSError as error:
        place = error.filename or results.path
        kept = progress.kept(results.path)
        raise cli.UserError(f'{place}: {error.strerror}; {kept}') from error


def main() -> None:
    args = parse_args()
    cfg = read_config(args.config, args.cfg_options)
    segmentation = cfg.default_scope == 'mmseg'
    if segmentation and args.coco_json:
        raise cli.UserError('--coco-json: is of objects, which a segmentor does not predict')
    classifies = cfg.default_scope == 'mmpretrain'
    if classifies:
        for option in ('masks', 'coco_json', 'tile'):
            if getattr(args, option):
                name = option.replace('_', '-')
                raise cli.UserError(f'--{name}: a classifier tells the classes of whole images')
    cli.weights_file(args.checkpoint, 'checkpoint')
    sources = find_sources(args.images)
    where = places.plan(sources, args.out_dir, args.coco_json, segmentation and args.masks)
    places.check(where, sources, args.out_dir, args.overwrite)
    if args.tile and segmentation:
        slide(cfg, args.tile, args.overlap)
    model, dataset = build(cfg, args.checkpoint, args.device)
    if args.bf16:
        use_bfloat16(model, functools.partial(print, flush=True))
    meta = model.dataset_meta
    coco = None
    if args.coco_json:
        coco = CocoResults(dataset, meta['classes'], sources)
        print(f'{args.coco_json}: {coco.ids}', flush=True)

    reader = Reader(sources, args.frames)
    progress = Progress(reader)
    predict = predictor(model, cfg)
    if args.tile and not segmentation:
        batch = (args.batch_size, args.score_thr)
        predict = tiled(predict, args.tile, args.overlap, *batch, tell=progress.tell)
    of_all = segmentation or classifies  # nothing is left out for its score
    draw = Drawing(cfg, meta, **({} if of_all else {'pred_score_thr': args.score_thr}))
    results = Results(where, draw, meta, args.score_thr, args.masks, coco)
    demo(reader, predict, results, progress, args.batch_size)
    if reader.failed:
        raise cli.UserError(f'{len(reader.failed)} of {len(sources)} inputs could not be read')


if __name__ == '__main__':
    cli.run(main)
