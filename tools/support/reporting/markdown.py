"""Published against ours as a README of a config folder."""

import re
from itertools import groupby
from typing import Any

from backbone.rmt import VARIANTS
from support import cli
from support.reporting.paper import Row, Table
from support.reporting.plots import PLOTS, png_name
from support.reporting.results import TOLERANCE, status

SHORT = {
    'bbox_mAP': 'box AP',
    'segm_mAP': 'mask AP',
    'mIoU': 'mIoU',
    'accuracy/top1': 'top-1',
}
"""Metrics that a README shows, by the heading of their columns."""

INTRO = """\
<!-- Written by tools/report.py from docs/paper.yml and docs/results.json: change those. -->

# {title}

Published against ours, row by row. **Params** in M and **FLOPs** in G multiply-adds at the stated \
input stand as *published / counted here* (`tools/get_flops.py`): FLOPs of convolutions and linear \
layers, as those who published them count; **all** adds the attention's products \
([why](../docs/costs.md)). Metrics in percent: *published*, then *ours* with the difference where \
there is a run. {sources}

Status: **published**, that number alone; **reproduced**, the whole validation set evaluated \
here, at most {tolerance} below it; **measured on a subset**, fewer images or other test settings, \
so not comparable with it; **not run**, neither; **ours, not run**: a recipe that nobody has \
published with this backbone. How to run each row, and what to expect: \
[docs/reproduction.md](../docs/reproduction.md). All metrics as one page: `python tools/report.py` \
writes `work_dirs/report.html`.
"""
TITLES = {
    'cls_configs': 'Classification on ImageNet',
    'det_configs': 'Detection on COCO',
    'seg_configs': 'Segmentation on ADE20K',
}


def markdown_page(rows: list[Row], results: dict[str, dict]) -> str:
    """The README of a folder with these rows."""
    title = TITLES[rows[0].table.folder]
    parts = [INTRO.format(title=title, tolerance=TOLERANCE, sources=sources(rows))]
    for table, group in groupby(rows, key=lambda row: row.table):
        metrics = [name for name in table.metrics if name in SHORT]
        head = ['config', 'input', 'params', 'FLOPs', 'all']
        for name in metrics:
            head += [SHORT[name], 'ours']
        group = list(group)
        lines = [row_cells(row, results[row.name], metrics) for row in group]
        parts.append(
            f'\n## {table.title} ({table.schedule})\n\n' + text_table([*head, 'status'], lines)
        )
        if notes := [f'- `{row.name}`: {row.note}\n' for row in group if row.note]:
            parts += ['\n', *notes]
        if table.name in PLOTS:
            parts.append(f'\n![{plots_text(table)}](../docs/img/{png_name(table.name)})\n')
    notes = [
        f'- `{row.name}`: {note}' for row in rows if (note := run_note(results[row.name]['run']))
    ]
    if notes:
        parts.append('\n## Runs\n\n' + '\n'.join(notes) + '\n')
    return ''.join(parts)


def sources(rows: list[Row]) -> str:
    """Where the numbers of each family come from, as sentences."""
    published = {row.family for row in rows if row.paper}
    sentences = []
    for family in dict.fromkeys(row.family for row in rows):
        origin = f'from {family.source}' if family in published else 'no published result'
        sentences.append(f'[{family.name}]({family.url}): {origin}.')
    return ' '.join(sentences)


def plots_text(table: Table) -> str:
    """What stands for a table's plots where they are not seen."""
    return f'{PLOTS[table.name]} of {table.title}, as published, against FLOPs and parameters'


def row_cells(row: Row, result: dict[str, Any], metrics: list[str]) -> list[str]:
    cells = [
        f'[{row.name}]({row.name}.py)',
        f'{row.shape[0]}×{row.shape[1]}',
        f'{number(row.params)} / {result["params"] / 1e6:.1f}',
        f'{number(row.flops)} / {result["flops_paper"] / 1e9:.1f}',
        f'{result["flops_total"] / 1e9:.1f}',
    ]
    for name in metrics:
        cells += [number(row.paper.get(name)), ours(row, result['run'], name)]
    return [*cells, status(row, result['run'])]


def number(value: float | None) -> str:
    return '–' if value is None else f'{value:g}' if value > 100 else f'{value}'


def ours(row: Row, run: dict[str, Any] | None, metric: str) -> str:
    """Our value, and the difference where it may be compared with the paper's."""
    if not run or metric not in run['metrics']:
        return '–'
    value = run['metrics'][metric]
    if metric not in row.paper or status(row, run) == 'measured on a subset':
        return f'{value:.1f}'
    return f'{value:.1f} ({value - row.paper[metric]:+.1f})'


def run_note(run: dict[str, Any] | None) -> str:
    if not run:
        return ''
    changed = f'; changed: {", ".join(run["changed"])}' if run['changed'] else ''
    return f'{run["checkpoint"]}, {run["images"]} images, {run["time"]}{changed}'


def text_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ['---'] + ['---:'] * (len(head) - 2) + ['---'], *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def with_variants(readme: str, rows: list[Row], results: dict[str, dict]) -> str:
    """The project's README with its table of variants, between two comments, made anew."""
    of_rmt = {(r.table.name, r.variant): r for r in rows if r.family.name == 'RMT'}
    lines = []
    for arch, variant in VARIANTS.items():
        if not variant.released_name:  # the paper has no such size
            continue
        detector = of_rmt['mask_rcnn_1x', variant.letter]
        segmentor = of_rmt['upernet_160k', variant.letter]
        cost = results[detector.name]
        box, mask = (number(detector.paper[name]) for name in ('bbox_mAP', 'segm_mAP'))
        gigas = (f'{cost[key] / 1e9:.0f}' for key in ('flops_paper', 'flops_total'))
        lines.append(
            [
                f'`{arch}`',
                f'RMT-{variant.letter}',
                f'{box} / {mask}',
                number(segmentor.paper.get('mIoU')),
                f'{cost["params"] / 1e6:.1f} M',
                ' / '.join(gigas),
            ]
        )
    head = ['`arch`', 'paper', 'box / mask AP', 'mIoU', 'parameters', 'G multiply-adds']
    mark = re.compile(r'(<!-- variants[^>]*-->\n).*?(<!-- /variants -->)', re.DOTALL)
    if not mark.search(readme):
        raise cli.UserError('README.md: no comments <!-- variants --> and <!-- /variants -->')
    table = text_table(head, lines)
    return mark.sub(lambda found: f'{found[1]}{table}{found[2]}', readme)
