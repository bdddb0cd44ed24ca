#!/usr/bin/env python
"""Where a place of an image looks: its attention, and the decay alone beside it, over the picture.

The attention is that of one block, by the config's test pipeline and the checkpoint's weights; the
decay alone is what the same head would weigh if queries and keys said nothing. Both sum to 1. In an
axial stage a place sees another through the row of that one and its own column: drawn is the
product of both weights.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from support import cli
from support.config import read_config
from support.files import atomic_write, check_file
from support.prediction.inputs import read_image
from support.prediction.model import build, test_pipeline
from torch import Tensor, nn

from backbone import RMT
from backbone.attention import StageAttention
from backbone.layers import Retention

matplotlib.use('Agg')
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 3.6  # inches of one picture
DPI = 100
ALL = 'all'
NAMES = ('attention', 'decay alone')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('image')
    parser.add_argument('out', metavar='OUT.png')
    parser.add_argument(
        '--place', nargs=2, type=float, required=True, metavar=('X', 'Y'),
        help="pixels of the image, from its upper left corner",
    )  # fmt: skip
    parser.add_argument('--stage', type=int, required=True, help='1 to 4, the first is the finest')
    parser.add_argument('--block', type=int, help="from 1 on; (the stage's last)")
    parser.add_argument('--head', default=ALL, help=f'from 1 on, or {ALL} ({ALL})')
    parser.add_argument('--device', default=get_device(), help='cuda:0, cpu, ... (GPU if any)')
    cli.add_cfg_options(parser)
    return parser.parse_args()


# --- the attention -------------------------------------------------------------------------------


def looks_of(
    retention: Retention, attention: StageAttention, x: Tensor, place: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The attention of a place (row, column) and its decay alone, (n, H, W), each head's sum 1.

    Args:
        x: what the retention takes, (1, H, W, C).
    """
    with torch.no_grad():
        q, k = (retention.split(project(x)) for project in (retention.q_proj, retention.k_proj))
    nothing = torch.zeros_like(q)
    return weights_of(attention, q, k, place), weights_of(attention, nothing, nothing, place)


def weights_of(attention: StageAttention, q: Tensor, k: Tensor, place: tuple[int, int]) -> Tensor:
    """How a place (row, column) weighs every place, (n, H, W); q k (1, H, W, n, d).

    Its result is a weighted sum of the values, so the weights are its gradient by them.
    """
    v = torch.zeros_like(q, requires_grad=True)
    with torch.enable_grad():
        # 'auto': whatever the config names has to have gradients
        out = replace(attention, name='auto').prepare(q.flatten(-2))(q, k, v)
        (weights,) = torch.autograd.grad(out[0][place][:, 0].sum(), v)
    return weights[0, ..., 0].permute(2, 0, 1).cpu()  # (H, W, n) -> (n, H, W)


# --- the model -----------------------------------------------------------------------------------


def chosen(what: str, number: int, count: int) -> int:
    """The index of the ``number``-th of ``count``."""
    if not 1 <= number <= count:
        raise cli.UserError(f'--{what} {number}: choose from 1 to {count}')
    return number - 1


def find_block(
    backbone: nn.Module, config: str, stage: int, block: int | None
) -> tuple[Retention, StageAttention]:
    """The attention of a block, both counted from 1, the last where none is named."""
    if not isinstance(backbone, RMT):
        raise cli.UserError(f'{config}: its backbone is {type(backbone).__name__}, not RMT')
    part = backbone.layers[chosen('stage', stage, len(backbone.layers))]
    index = chosen('block', len(part.blocks) if block is None else block, len(part.blocks))
    return part.blocks[index].retention, part.attention


def chosen_heads(head: str, count: int) -> list[int]:
    """Indices of the heads to draw."""
    if head == ALL:
        return list(range(count))
    if not head.isdigit():
        raise cli.UserError(f'--head {head}: choose from 1 to {count}, or {ALL}')
    return [chosen('head', int(head), count)]


@contextmanager
def caught(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first argument of every call of a module in the meantime."""
    taken: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: taken.append(arguments[0]))
    try:
        yield taken
    finally:
        handle.remove()


def prepared(model: nn.Module, cfg: Config, picture: np.ndarray) -> tuple[Tensor, tuple]:
    """What the backbone takes, (1, 3, H, W), and the scale of x and y from the picture to it."""
    data = Compose(test_pipeline(cfg))(dict(img=mmcv.rgb2bgr(picture), img_id=0))
    batch = model.data_preprocessor(pseudo_collate([data]), False)
    meta = batch['data_samples'][0].metainfo
    (height, width), (new_height, new_width) = meta['ori_shape'][:2], meta['img_shape'][:2]
    return batch['inputs'], meta.get('scale_factor', (new_width / width, new_height / height))


def cell(place: tuple[float, float], step: np.ndarray, grid: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the grid (H, W) whose cells are ``step`` (x, y) wide and hold a place."""
    column, row = (int(p // s) for p, s in zip(place, step, strict=True))
    return min(row, grid[0] - 1), min(column, grid[1] - 1)


# --- the picture ---------------------------------------------------------------------------------


def draw(
    picture: np.ndarray, place: tuple[float, float], step: np.ndarray,
    maps: dict[int, tuple[np.ndarray, np.ndarray]], title: str,
) -> Figure:  # fmt: skip
    """For every head two pictures side by side, the attention and the decay alone.

    Args:
        step: width and height of a cell of the grid, in pixels of the picture.
        maps: both, (H, W) each, by head.
    """
    height, width = picture.shape[:2]
    across = min(2, len(maps))  # pairs in a row
    down = -(-len(maps) // across)
    size = (2 * across * WIDTH, down * (WIDTH * height / width + 0.3) + 0.4)
    figure = Figure(figsize=size, dpi=DPI, layout='constrained')
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(down, 2 * across, squeeze=False).flatten()
    for panel in panels:
        panel.set_axis_off()
    for i, (head, pair) in enumerate(maps.items()):
        most = max(weights.max() for weights in pair)  # one scale of colours for both
        for panel, name, weights in zip(panels[2 * i :], NAMES, pair, strict=False):
            overlay(panel, picture, weights / most, step)
            panel.plot(*place, marker='+', color='cyan', markersize=9)
            title = f'head {head + 1}, {name}: at most {100 * weights.max():.2g} %'
            panel.set_title(title, fontsize=9)
    return figure


def overlay(panel: Axes, picture: np.ndarray, shares: np.ndarray, step: np.ndarray) -> None:
    """Shares (H, W) of the largest weight over the picture in gray."""
    height, width = picture.shape[:2]
    rows, columns = shares.shape
    panel.imshow(mmcv.rgb2gray(picture), cmap='gray', extent=(0, width, height, 0))
    cells = (0, columns * step[0], rows * step[1], 0)
    panel.imshow(shares, cmap='inferno', alpha=0.6, extent=cells, vmin=0, vmax=1)
    panel.set(xlim=(0, width), ylim=(height, 0))  # the grid may reach beyond the picture


def main() -> None:
    args = parse_args()
    cfg = read_config(args.config, args.cfg_options)
    cli.weights_file(args.checkpoint, 'checkpoint')
    if not args.out.lower().endswith('.png'):
        raise cli.UserError(f'{args.out}: a .png is written; name one')
    check_file(args.out, 'OUT.png')
    try:
        picture = read_image(Path(cli.existing_file(args.image, 'image')))
    except ValueError as error:
        raise cli.UserError(f'image {args.image}: no image that can be decoded') from error
    height, width = picture.shape[:2]
    x, y = args.place
    if not (0 <= x < width and 0 <= y < height):
        raise cli.UserError(
            f'--place {x:g} {y:g}: outside; {args.image} has {width} x {height} pixels'
        )

    if cfg.default_scope == 'mmpretrain':
        raise cli.UserError(
            f'{args.config}: is of a classifier, which sees a part of the picture, cut out and '
            'resized; give the config of a detector or segmentor with its weights'
        )
    model, _ = build(cfg, args.checkpoint, args.device)
    backbone = getattr(model, 'backbone', None)
    retention, attention = find_block(backbone, args.config, args.stage, args.block)
    heads = chosen_heads(args.head, attention.heads)
    inputs, scale = prepared(model, cfg, picture)
    with caught(retention) as taken, torch.no_grad():
        backbone(inputs)
    (features,) = taken
    step = 2 ** (args.stage + 1) / np.array(scale)  # a cell of the grid, in pixels of the picture
    row_column = cell((x, y), step, features.shape[1:3])
    both = (t.numpy() for t in looks_of(retention, attention, features, row_column))
    maps = {head: pair for head, pair in enumerate(zip(*both, strict=True)) if head in heads}

    kind = 'row x column attention' if attention.axial else 'whole attention'
    block = args.block or len(backbone.layers[args.stage - 1].blocks)
    title = f'stage {args.stage} ({kind}), block {block}, place {x:g}, {y:g}'
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(args.out, partial(draw(picture, (x, y), step, maps, title).savefig))
    print(f'{args.out}: {title}')


if __name__ == '__main__':
    cli.run(main)
