"""The first published metric against what a model costs, with the peers in grey."""

import io
from itertools import groupby
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from support.reporting.paper import Row

PLOTS = {'mask_rcnn_1x': 'box AP', 'upernet_160k': 'mIoU'}
"""Tables that have peers, and what the first metric is called."""

AXES = ('flops', 'params')

COLOURS = {'RMT': '#c2410c', 'RAVLT': '#1d4ed8', 'MAViT': '#0f766e'}
"""By family."""

LETTERS = {'RMT': (4, -12), 'RAVLT': (-11, 4), 'MAViT': (-11, 4)}
"""Where the sizes' letters stand from their points, in points: the curves are close."""


def png_name(table: str) -> str:
    """File name of a table's plots in docs/img."""
    return f'paper-{table}.png'


def png(table: str, rows: list[Row], results: dict[str, dict], peers: dict) -> bytes:
    """Both plots of a table side by side."""
    return _save('png', AXES, table, rows, results, peers, dpi=110, metadata={'Software': None})


def svg(table: str, rows: list[Row], results: dict[str, dict], peers: dict, axis: str) -> str:
    """One plot of a table as an <svg> element; ``axis`` is one of :data:`AXES`."""
    metadata = {'Date': None, 'Creator': None}
    text = _save('svg', (axis,), table, rows, results, peers, metadata=metadata).decode()
    return text[text.index('<svg') :]


def _save(
    kind: str,
    axis_names: tuple[str, ...],
    table: str,
    rows: list[Row],
    results: dict[str, dict],
    peers: dict,
    **options: Any,
) -> bytes:
    shown = [row for row in rows if row.table.name == table]
    with mpl.rc_context({'svg.hashsalt': 'rmt', 'font.size': 9}):
        figure = Figure(figsize=(5.2 * len(axis_names), 3.6), layout='constrained')
        for i, axis in enumerate(axis_names, start=1):
            axes = figure.add_subplot(1, len(axis_names), i)
            _plot(axes, shown, results, peers[table], axis, PLOTS[table])
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def _plot(
    axes: Any, rows: list[Row], results: dict[str, dict], peers: dict, axis: str, metric: str
) -> None:
    """The first published metric against FLOPs or parameters, a curve a family."""
    column = {'params': 0, 'flops': 1}[axis]
    ends = {}
    for name, sizes in peers.items():
        points = [(v[column], v[2]) for v in sizes.values() if v[column] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), 'o-', color='0.72', ms=3, lw=1, zorder=1)
            ends[name] = points[-1]
    for name, group in groupby(rows, key=lambda row: row.family.name):
        family = [row for row in group if row.paper]
        if not family:
            axes.plot([], [], ' ', label=f'{name}: no published result')
        elif axis == 'params':
            _curve(axes, family, results, 'params', 1e6, '-')
        else:
            _curve(axes, family, results, 'flops_paper', 1e9, '-')
            _curve(axes, family, results, 'flops_total', 1e9, '--')
    if axis == 'params':
        axes.set_xlabel('parameters (M)')
    else:
        axes.plot([], [], 'o--', color='0.3', ms=4, lw=1.5, label='attention products counted too')
        axes.set_xlabel('multiply-adds (G); peers as they count')
    axes.set_ylabel(f'{metric}, as published (%)')
    axes.set_title(rows[0].table.title, loc='left', fontsize=10)
    axes.margins(x=0.06)
    _name_peers(axes, ends)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False, loc='lower right', fontsize=8)


def _name_peers(axes: Any, ends: dict[str, tuple[float, float]]) -> None:
    """Names at the right edge, by height, at least a line apart, with a thin leader each."""
    low, high = axes.get_ylim()
    line, last = (high - low) / 24, float('-inf')
    for name, end in sorted(ends.items(), key=lambda item: item[1][1]):
        last = max(end[1], last + line)
        place = (1.01, (last - low) / (high - low))
        leader = dict(arrowstyle='-', color='0.85', lw=0.6, shrinkA=0, shrinkB=2)
        axes.annotate(
            name, end, place, textcoords='axes fraction', va='center', color='0.45', fontsize=7,
            arrowprops=leader,
        )  # fmt: skip
    axes.set_ylim(low, high)


def _curve(
    axes: Any, rows: list[Row], results: dict[str, dict], key: str, unit: float, style: str
) -> None:
    """One family; the solid curve has its name and the sizes' letters."""
    family = rows[0].family.name
    places = [(results[row.name][key] / unit, row.paper[row.table.metrics[0]]) for row in rows]
    label = family if style == '-' else None
    axes.plot(
        *zip(*places, strict=True), f'o{style}',
        color=COLOURS[family], ms=5, lw=1.8, zorder=3, label=label,
    )  # fmt: skip
    if style == '-':
        for row, place in zip(rows, places, strict=True):
            axes.annotate(
                row.variant, place, LETTERS[family], textcoords='offset points', weight='bold',
                color=COLOURS[family],
            )  # fmt: skip
