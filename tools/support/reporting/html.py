"""Published against ours as one HTML page: all metrics, and plots with the peers in grey."""

from html import escape
from itertools import groupby

from support.reporting.markdown import SHORT, number, ours, run_note
from support.reporting.paper import Row
from support.reporting.plots import AXES, PLOTS, svg
from support.reporting.results import status

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
<p>Params in millions and FLOPs in billions of multiply-adds, <i>published</i> and <i>counted
here</i>. <b>FLOPs</b> count convolutions and linear layers, as those who published them do;
<b>all</b> adds the products inside the attention. Metrics in percent: published, below it ours,
with the difference where both stand for the whole validation set.</p>
"""


def html_page(rows: list[Row], results: dict[str, dict], peers: dict) -> str:
    """The whole page; needs no other file."""
    title = f'{", ".join(dict.fromkeys(r.family.name for r in rows))}: published against ours'
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f'<title>{title}</title><style>{CSS}</style><h1>{title}</h1>{INTRO}<div class="plots">',
    ]
    for table in PLOTS:
        parts += [f'<figure>{svg(table, rows, results, peers, axis)}</figure>' for axis in AXES]
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
        note = '; '.join(filter(None, (row.note, run_note(run))))
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
    """'bbox_mAP_50' -> 'box AP50', 'bbox_mAP_s' -> 'box APS'; others by their short names."""
    kind, _, rest = name.partition('_mAP')
    kinds = {'bbox': 'box AP', 'segm': 'mask AP'}
    return kinds[kind] + rest.strip('_').upper() if kind in kinds else SHORT.get(name, name)


def cells(texts: list[str], tag: str) -> str:
    return f'<tr>{"".join(f"<{tag}>{text}</{tag}>" for text in texts)}</tr>\n'
