"""The part of docs/reproduction.md that follows from the tables: commands, numbers, disk."""

import re
from itertools import groupby
from typing import Any

from support import cli
from support.reporting.markdown import SHORT, number, text_table
from support.reporting.paper import Row

BYTES = {'cls_configs': 16, 'det_configs': 12, 'seg_configs': 12}
"""A checkpoint's bytes a parameter: float32 weights, AdamW's two moments, classifiers' average."""


def with_rows(text: str, rows: list[Row], results: dict[str, dict[str, Any]]) -> str:
    """docs/reproduction.md with what stands between its two comments made anew."""
    mark = re.compile(r'(<!-- rows[^>]*-->\n).*?(<!-- /rows -->)', re.DOTALL)
    if not mark.search(text):
        raise cli.UserError('docs/reproduction.md: no comments <!-- rows --> and <!-- /rows -->')
    parts = [section(list(g), results) for _, g in groupby(rows, key=lambda row: row.table)]
    return mark.sub(lambda found: f'{found[1]}{"".join(parts)}\n{found[2]}', text)


def section(rows: list[Row], results: dict[str, dict[str, Any]]) -> str:
    table = rows[0].table
    lines, commands = [], []
    for row in rows:
        expected = [number(row.paper[m]) for m in table.metrics if m in SHORT and row.paper]
        gigabytes = results[row.name]['params'] * BYTES[table.folder] / 1e9
        lines.append(
            [
                f'`{row.name}`',
                ' / '.join(expected) or 'no published result',
                f'{gigabytes:.1f} GB',
            ]
        )
        commands += row_commands(row)
    metrics = ' / '.join(SHORT[m] for m in table.metrics if m in SHORT)
    head = ['config', f'expected {metrics}', 'checkpoint']
    bash = '\n'.join(commands)
    return f'\n### {table.title}\n\n{text_table(head, lines)}\n```bash\n{bash}\n```\n'


def row_commands(row: Row) -> list[str]:
    """Training and evaluating one row, as they are typed in the project's directory."""
    data = {'COCO': 'COCO', 'ADE20K': 'ADE'}.get(row.table.dataset, 'IMAGENET')
    options = f'--cfg-options data_root=${data}'
    number, unit = re.match(r'([\d,]+) (epoch|iter)', row.table.schedule).groups()
    work = f'work_dirs/{row.name}'
    last = f'{work}/{unit}_{number.replace(",", "")}.pth'
    if row.table.folder == 'seg_configs':
        last = f'{work}/best_mIoU_iter_*.pth'
    weights = f' pretrained=$WEIGHTS/{row.model}.pth'
    if row.table.folder == 'cls_configs':  # where such weights come from
        last, weights = f'{work}/best_accuracy_top1_epoch_*.pth', ''
    return [
        f'tools/dist_train.sh {row.config} $GPUS {options}{weights}',
        f'tools/dist_test.sh {row.config} {last} $GPUS {options}',
    ]
