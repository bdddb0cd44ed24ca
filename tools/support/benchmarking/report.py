"""The benchmark's table and plots, from its results alone."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from support.files import atomic_write
from support.reporting import paper

PEERS = {'swin-t': ('Swin', 's'), 'swin-s': ('Swin', 'b'), 'pvtv2-b1': ('PVTv2-B1', 't')}
"""The benchmark's names of models that docs/paper.yml has among the peers."""
COLOURS = {'naive': '#999999', 'fused': '#4477aa', 'kernel': '#cc6677', 'auto': '#cc3311'}


def matrix_rate(results: list[dict]) -> float | None:
    """Multiply-adds per second that the machine reached in a large matrix product."""
    return max((r['rate'] for r in results if 'rate' in r), default=None)


def summary(result: dict) -> str:
    """One line about a result."""
    if 'error' in result:
        return f'failed: {result["error"]}'
    if 'rate' in result:
        return f'{result["rate"] / 1e9:.1f} G multiply-adds per second in a matrix product'
    return (
        f'{result["seconds_median"]:.3f} s ({result["seconds_min"]:.3f} to '
        f'{result["seconds_max"]:.3f}), {result["peak_bytes"] / 1e6:.0f} MB'
    )


def write(results: list[dict], folder: Path) -> None:
    """``benchmark.md`` and the plots that the results allow."""
    atomic_write(folder / 'benchmark.md', table(results))
    measured = [r for r in results if 'seconds_median' in r]
    plots: dict[str, Callable] = {
        'latency': plot_latency,
        'memory': plot_memory,
        'time_per_pixel': plot_time_per_pixel,
        'operators': plot_operators,
    }
    for name, plot in plots.items():
        figure = plot(measured)
        if figure is not None:
            save = partial(figure.savefig, dpi=120, bbox_inches='tight')
            atomic_write(folder / f'{name}.png', save)


def table(results: list[dict]) -> str:
    """All results as Markdown; faster and memory are against the plain formula of the same case."""
    rate = matrix_rate(results)
    lines = []
    if results:
        first = next((r for r in results if 'machine' in r), None)
        if first:
            lines += [
                f'{first["machine"]}, {first["used_threads"]} threads, torch {first["torch"]}, '
                f'matrix rate {(rate or 0) / 1e9:.1f} G multiply-adds/s',
                '',
            ]
    lines += [
        '| model | attention | mode | input | seconds (min to max) | images/s | faster '
        '| peak MB | of formula | of matrix rate |',
        '|---|---|---|---|---|---|---|---|---|---|',
    ]
    for r in results:
        if 'rate' in r:
            continue
        part = '' if r['part'] == 'all' else f', {r["part"]}'
        cells = [r['model'] + part, r['attention'], r['mode'], f'{r["height"]}×{r["width"]}']
        if 'error' in r:
            lines.append('| ' + ' | '.join([*cells, r['error'], *[''] * 5]) + ' |')
            continue
        formula = next((f for f in results if same_case(f, r)), None)
        times = 3 if r['mode'] != 'inference' else 1  # backward: twice the products of forward
        share = times * r['multiply_adds'] / r['seconds_median'] / rate if rate else None
        cells += [
            f'{r["seconds_median"]:.3f} ({r["seconds_min"]:.3f} to {r["seconds_max"]:.3f})',
            f'{r["images_per_second"]:.2f}',
            f'{formula["seconds_median"] / r["seconds_median"]:.2f}×' if formula else '',
            f'{r["peak_bytes"] / 1e6:.0f}',
            f'{r["peak_bytes"] / formula["peak_bytes"]:.2f}'
            if formula and formula['peak_bytes']  # 0: too little to raise the process's peak
            else '',
            f'{share:.0%}' if share else '',
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def same_case(formula: dict, result: dict) -> bool:
    """Whether ``formula`` is the plain formula's result beside ``result``."""
    if 'seconds_median' not in formula:  # the matrix rate, or a case that failed
        return False
    keys = ('model', 'part', 'height', 'width', 'batch', 'dtype', 'device')
    modes = {formula['mode'], result['mode']}
    return (
        formula['attention'] == 'naive'
        and all(formula[k] == result[k] for k in keys)
        and (len(modes) == 1 or modes == {'training', 'training-cp'})
        and formula['mode'] != 'training-cp'
    )


def new_figure(width: float = 7, height: float = 4.5):
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib.figure import Figure

    figure = Figure((width, height))
    axes = figure.subplots()
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.3)
    return figure, axes


def box_ap() -> dict[str, float]:
    """Box AP under Mask R-CNN 1x by the benchmark's names."""
    rows, peers = paper.read_paper()
    ours = {
        f'rmt-{row.variant.lower()}': row.paper['bbox_mAP']
        for row in rows
        if row.table.name == 'mask_rcnn_1x' and row.family.name == 'RMT'
    }
    rivals = {name: peers['mask_rcnn_1x'][m][size][2] for name, (m, size) in PEERS.items()}
    return ours | rivals | paper.read_zoo()['mask_rcnn_1x']


def plot_latency(results: list[dict]):
    """Seconds an image against the paper's box AP."""
    ap = box_ap()
    shown = [r for r in results if r['mode'] == 'inference' and r['part'] == 'all']
    shown = [r for r in shown if r['model'] in ap]
    if not shown:
        return None
    figure, axes = new_figure()
    for attention in ['', *COLOURS]:
        points = [r for r in shown if r['attention'] == attention]
        if not points:
            continue
        x, y = [r['seconds_median'] for r in points], [ap[r['model']] for r in points]
        style = dict(color=COLOURS.get(attention, 'black'), marker='o')
        label = f'RMT, {attention}' if attention else 'rivals'
        axes.plot(x, y, linestyle='-' if attention else 'none', label=label, **style)
        for r, px, py in zip(points, x, y, strict=True):
            axes.annotate(
                r['model'], (px, py), textcoords='offset points', xytext=(4, 5), fontsize=8
            )
    axes.set_xlim(left=0)
    axes.set_xlabel(f'seconds an image, backbone, {shown[0]["height"]}×{shown[0]["width"]}')
    axes.set_ylabel('box AP as published, Mask R-CNN 1x')
    axes.legend()
    return figure


def plot_growth(
    results: list[dict], part: str, place: Callable[[dict], float], value: Callable[[dict], float]
):
    shown = [r for r in results if r['part'] == part]
    if not shown:
        return None, None
    figure, axes = new_figure(6, 4)
    for attention in COLOURS:
        points = sorted(
            (r for r in shown if r['attention'] == attention), key=lambda r: r['height']
        )
        if points:
            x, y = [place(r) for r in points], [value(r) for r in points]
            axes.plot(x, y, color=COLOURS[attention], marker='o', label=attention)
            for r, px, py in zip(points, x, y, strict=True):
                text = f'{r["height"]}²'
                axes.annotate(text, (px, py), textcoords='offset points', xytext=(4, 5), fontsize=8)
    axes.set_xlim(left=0)
    axes.legend()
    return figure, axes


def plot_memory(results: list[dict]):
    """Peak memory of one layer of whole attention against its tokens, at stride 16."""
    figure, axes = plot_growth(
        results,
        'attention',
        lambda r: -(-r['height'] // 16) * -(-r['width'] // 16),
        lambda r: r['peak_bytes'] / 1e6,
    )
    if axes is not None:
        axes.set_ylim(bottom=0, top=3 * axes.get_lines()[-1].get_ydata().max())
        axes.set_xlabel("tokens, one whole-attention layer of RMT-T's stage 3")
        axes.set_ylabel('MB at the peak')
    return figure


def plot_time_per_pixel(results: list[dict]):
    """Time per pixel of RMT-S's axial stages against the image's size."""
    figure, axes = plot_growth(
        results,
        'axial',
        lambda r: r['height'] * r['width'] / 1e6,
        lambda r: r['seconds_median'] / r['height'] / r['width'] * 1e9,
    )
    if axes is not None:
        axes.set_ylim(bottom=0)
        axes.set_xlabel('million pixels')
        axes.set_ylabel('ns a pixel, stem and axial stages of RMT-S')
    return figure


def plot_operators(results: list[dict]):
    """Seconds of each kind of operator, one bar a model and implementation."""
    shown = [r for r in results if 'operator_shares' in r]
    if not shown:
        return None
    figure, axes = new_figure(8, 0.4 * len(shown) + 1.5)
    kinds = sorted({k for r in shown for k in r['operator_shares']})
    left = [0.0] * len(shown)
    names = [f'{r["model"]} {r["attention"]}' for r in shown]
    for i, kind in enumerate(kinds):
        seconds = [r['operator_shares'].get(kind, 0) * r['seconds_median'] for r in shown]
        axes.barh(names, seconds, left=left, label=kind, color=f'C{i}')
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    axes.set_xlabel(f'seconds, {shown[0]["height"]}×{shown[0]["width"]}')
    axes.invert_yaxis()
    axes.legend(fontsize=8)
    return figure
