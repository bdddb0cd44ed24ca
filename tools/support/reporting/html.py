"""Paper against ours as one HTML page: all metrics, and plots with the peers in grey."""

import io
from html import escape
from itertools import groupby
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from support.reporting.markdown import number, ours, run_note
from support.reporting.paper import Row
from support.reporting.results import status

PLOTS = {'mask_rcnn_1x': 'box AP', 'upernet_160k': 'mIoU'}
"""Tables that have peers, and what the first metric is called."""

CSS = """\
:root{color-scheme:light dark;--line:#8884;--soft:#888}
body{font:15px/1.5 system-ui,sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}
.scroll{overflow-x:auto}table{font-size:.86rem;border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .5rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child,td:last-child{text-align:left}small{color:var(--soft)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(30rem,1fr));gap:1rem}
figure{margin:0;background:#fff;border-radius:6px}svg{width:100%;height:auto}
"""

INTRO = """\
<p>Params in millions and FLOPs in billions of multiply-adds, <i>paper</i> and <i>counted here</i>.
<b>FLOPs</b> count convolutions and linear layers, as the paper does; <b>all</b> adds the products
inside the attention. Metrics in percent: the paper's, below it ours, with the difference where both
stand for the whole validation set.</p>
"""


def html_page(rows: list[Row], results: dict[str, dict], peers: dict) -> str:
    """The whole page; needs no other file."""
    title = 'RMT: paper against ours'
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f'<title>{title}</title><style>{CSS}</style><h1>{title}</h1>{INTRO}<div class="plots">',
    ]
    for table, metric in PLOTS.items():
        shown = [row for row in rows if row.table.name == table and row.paper]
        for axis in ('flops', 'params'):
            svg = plot(shown, results, peers[table], axis, metric)
            parts.append(f'<figure>{svg}</figure>')
    parts.append('</div>')
    for table, group in groupby(rows, key=lambda row: row.table):
        parts.append(f'<h2>{escape(f"{table.title}, {table.dataset} ({table.schedule})")}</h2>')
        parts.append(html_table(list(group), results))
    return '\n'.join(parts) + '\n'


def html_table(rows: list[Row], results: dict[str, dict]) -> str:
    metrics = rows[0].table.metrics
    head = ['config', 'input', 'params', 'FLOPs', 'all', *map(metric_title, metrics)]
    lines = [cells([*head, 'status'], 'th')]
    for row in rows:
        result = results[row.name]
        run = result['run']
        note = run_note(run)
        line = [
            f'{row.name}<br><small>config {result["hash"]}</small>',
            f'{row.shape[0]}×{row.shape[1]}',
            f'{number(row.params)}<br>{result["params"] / 1e6:.2f}',
            f'{number(row.flops)}<br>{result["flops_paper"] / 1e9:.1f}',
            f'<br>{result["flops_total"] / 1e9:.1f}',
            *(f'{number(row.paper.get(m))}<br>{ours(row, run, m)}' for m in metrics),
            status(row, run) + (f'<br><small>{escape(note)}</small>' if note else ''),
        ]
        lines.append(cells(line, 'td'))
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def metric_title(name: str) -> str:
    """'bbox_mAP_50' -> 'box AP50', 'bbox_mAP_s' -> 'box APS'; others as they are."""
    kind, _, rest = name.partition('_mAP')
    kinds = {'bbox': 'box AP', 'segm': 'mask AP'}
    return kinds[kind] + rest.strip('_').upper() if kind in kinds else name


def cells(texts: list[str], tag: str) -> str:
    return f'<tr>{"".join(f"<{tag}>{text}</{tag}>" for text in texts)}</tr>\n'


def plot(rows: list[Row], results: dict[str, dict], peers: dict, axis: str, metric: str) -> str:
    """The paper's first metric against FLOPs or parameters, as an <svg> element."""
    headline = rows[0].table.metrics[0]
    column = {'params': 0, 'flops': 1}[axis]
    with mpl.rc_context({'svg.hashsalt': 'rmt', 'font.size': 9}):
        figure = Figure(figsize=(5.2, 3.6), layout='constrained')
        axes = figure.add_subplot()
        ends = {}
        for name, sizes in peers.items():
            points = [(v[column], v[2]) for v in sizes.values() if v[column] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), 'o-', color='0.72', ms=3, lw=1, zorder=1)
                ends[name] = points[-1]
        _name_peers(axes, ends)
        values = [row.paper[headline] for row in rows]
        measured = {
            key: [results[row.name][key] for row in rows]
            for key in ('params', 'flops_paper', 'flops_total')
        }
        if axis == 'params':
            _curve(axes, [n / 1e6 for n in measured['params']], values, rows, 'RMT', '-')
            axes.set_xlabel('parameters (M)')
        else:
            _curve(axes, [n / 1e9 for n in measured['flops_paper']], values, rows, 'RMT', '-')
            label = 'RMT, attention products counted too'
            _curve(axes, [n / 1e9 for n in measured['flops_total']], values, rows, label, '--')
            axes.set_xlabel('multiply-adds (G); peers as they count')
        axes.set_ylabel(f'{metric}, as published (%)')
        axes.set_title(rows[0].table.title, loc='left', fontsize=10)
        axes.margins(x=0.06)
        axes.spines[['top', 'right']].set_visible(False)
        axes.legend(frameon=False, loc='lower right', fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None})
    svg = buffer.getvalue()
    return svg[svg.index('<svg') :]


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


def _curve(axes: Any, x: list[float], y: list[float], rows: list[Row], label: str, style: str):
    axes.plot(x, y, f'o{style}', color='#c2410c', ms=5, lw=1.8, zorder=3, label=label)
    for row, place in zip(rows, zip(x, y, strict=True), strict=True):
        if style == '-':
            axes.annotate(row.variant, place, (-11, 4), textcoords='offset points', weight='bold')
