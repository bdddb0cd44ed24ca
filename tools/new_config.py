#!/usr/bin/env python
"""Look at images of your own and write a config that trains on them.

    python tools/new_config.py DATA OUT.py
    python tools/train.py OUT.py

DATA is a folder or a file of annotations: COCO's JSON, YOLO's data.yaml, Pascal VOC's XML or
labelme's JSON for detection; images/ and masks/ with label maps for segmentation. What is converted
or split is written to DATA/rmt/; nothing that is there is changed. OUT.py is a config of a few
lines, each choice with its reason, for this machine; OUT.png shows what is in the data.
"""

import argparse
from pathlib import Path

from mmengine.config import Config
from support import checks, cli
from support.config import read_config
from support.files import atomic_write, check_file
from support.own_data import picture, placing, reading, recipe, report, start, writing
from support.own_data.found import Found
from support.own_data.pieces import Paths
from support.paths import command


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('data', metavar='DATA', help='a folder, or an annotation file')
    parser.add_argument('out', metavar='OUT.py', help='the config to write; must not exist')
    parser.add_argument('--images', help='the folder of the images, where it is not near')
    parser.add_argument('--val', help='of COCO JSON, the file to validate on')
    parser.add_argument('--files', help='the folder for files split or converted (DATA/rmt)')
    parser.add_argument('--classes', nargs='+', help='take these classes alone')
    parser.add_argument('--head', choices=recipe.BASES, help='by the data where it is not given')
    parser.add_argument('--arch', choices=recipe.known_archs(), help="or as --start's file; tiny")
    parser.add_argument(
        '--start',
        metavar='FILE',
        help='weights to start from: ImageNet, or a detector or segmentor, also of other classes',
    )
    parser.add_argument('--size', type=int, help='pixels of the longer side in the training')
    parser.add_argument('--minutes', type=float, default=40, help='on a CPU, how long to train')
    args = parser.parse_args()
    if args.size is not None and args.size < 16:
        raise cli.UserError(f'--size {args.size}: must be at least 16 pixels')
    if not args.minutes > 0:
        raise cli.UserError(f'--minutes {args.minutes}: must be more than 0')
    return args


def main() -> None:
    args = parse_args()
    out = Path(args.out)
    check_out(out)
    weights = start.Weights.read(args.start) if args.start else None
    found = reading.read(args.data, args.images, args.val, args.classes)
    choose_head(args.head, found, weights)  # before anything is written
    files = Path(args.files).expanduser().absolute() if args.files else None
    found, paths, written = placing.place(found, files)
    try:
        text, side = compose(out, found, paths, weights, args)
        said = report.text(found, side)
        cfg = check(out, text)
        picture.draw(found, cfg, out.with_suffix('.png'))
    except BaseException:
        placing.undo(written)
        raise
    print(said)
    atomic_write(out, text)
    print(f'{out.with_suffix(".png")}: the same as a picture')
    print(f'{out}: the config; to train: {command("train")} {out}')


def check_out(out: Path) -> None:
    if out.suffix != '.py':
        raise cli.UserError(f'{out}: OUT must end in .py')
    if out.exists():
        raise cli.UserError(f'{out}: exists; give another name or move it away')
    drawn = out.with_suffix('.png')
    if drawn.exists() and not picture.is_ours(drawn):
        raise cli.UserError(f'{drawn}: exists; give another name or move it away')
    if not out.absolute().parent.is_dir():
        raise cli.UserError(f'{out.parent}: no such folder')
    check_file(out, 'OUT')


def choose_head(wanted: str | None, found: Found, weights: start.Weights | None) -> str:
    """The head: as asked for, else as the weights have it, else what suits the data."""
    if found.is_segmentation:
        fitting, usual = recipe.MAP_HEADS, 'fpn'
    elif found.masks:
        fitting, usual = recipe.MASK_HEADS + recipe.BOX_HEADS, 'mask_rcnn'
    else:
        fitting, usual = recipe.BOX_HEADS, 'retinanet'
    if wanted and wanted not in fitting:
        has = 'label maps' if found.is_segmentation else 'masks' if found.masks else 'boxes alone'
        raise cli.UserError(f'--head {wanted}: the data has {has}: {", ".join(fitting)}')
    if wanted:
        return wanted
    return weights.head if weights and weights.head in fitting else usual


def choose_arch(wanted: str | None, weights: start.Weights | None) -> str:
    if weights is None:
        return wanted or 'tiny'
    if wanted and wanted != weights.description.arch:
        raise cli.UserError(f'--arch {wanted}: {weights.file} is {weights.description}')
    return weights.description.arch


def compose(
    out: Path,
    found: Found,
    paths: Paths,
    weights: start.Weights | None,
    args: argparse.Namespace,
) -> tuple[str, int | None]:
    """The config's text, and the longer side of its images."""
    head, arch = choose_head(args.head, found, weights), choose_arch(args.arch, weights)
    how, begin = start.plan(weights, head, found.classes)
    case = recipe.Case(
        head,
        arch,
        images=found.splits['train'].size,
        val_images=found.splits['val'].size,
        machine=recipe.Machine.here(),
        start=how,
        schooled=weights.schooled if weights else True,
        full_width=weights.full_width if how in ('detector', 'again') else None,
        minutes=args.minutes,
        side=args.size,
    )
    chosen = recipe.recipe(case)
    return writing.config_text(out, case, chosen, found.classes, paths, begin), chosen['side'].value


def check(out: Path, text: str) -> Config:
    """Read the config, and look at the data through it, as a training would."""
    beside = out.with_name(f'.{out.stem}.check.py')
    try:
        beside.write_text(text)
        cfg = read_config(str(beside), {})
        checks.check_data(cfg, ('train', 'val'))
        return cfg
    finally:
        beside.unlink(missing_ok=True)


if __name__ == '__main__':
    cli.run(main)
