"""The part of docs/reproduction.md that follows from the tables: commands, numbers, time, disk."""

import re
from itertools import groupby
from typing import Any

from support import cli
from support.reporting.markdown import SHORT, number, text_table
from support.reporting.paper import Row

GPUS = 8

# mmdet's model zoo states 62.11 ms an image for its Mask R-CNN R50 at 800 × 1333 in float32 on a
# V100; tools/get_flops.py counts 268.9 G multiply-adds for it (padded to 800 × 1344)
V100_RATE = 268.9e9 / 0.06211
TRAINING = 3
"""Forward and backward over forward: the backward pass has two products for each one."""

# images that training sees, and their mean area over that of the input that was counted
COCO_TRAIN = 118_287
SEEN = {
    'mask_rcnn_1x': (12 * COCO_TRAIN, 1.0),
    'mask_rcnn_3x': (36 * COCO_TRAIN, (640 / 800) ** 2),  # short sides from 480 to 800
    'cascade_mask_rcnn_3x': (36 * COCO_TRAIN, (640 / 800) ** 2),
    'retinanet_1x': (12 * COCO_TRAIN, 1.0),
    'fpn_80k': (80_000 * 16, None),  # crops of 512 × 512
    'upernet_160k': (160_000 * 16, None),
}
BYTES = 12
"""A checkpoint's bytes a parameter: float32 weights and AdamW's two moments."""


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
        gigabytes = results[row.name]['params'] * BYTES / 1e9
        lines.append(
            [
                f'`{row.name}`',
                ' / '.join(expected) or 'not published',
                f'{hours(row, results[row.name]):.0f} h',
                f'{gigabytes:.1f} GB',
            ]
        )
        commands += row_commands(row)
    metrics = ' / '.join(SHORT[m] for m in table.metrics if m in SHORT)
    head = ['config', f'expected {metrics}', f'time, {GPUS} V100', 'checkpoint']
    bash = '\n'.join(commands)
    return f'\n### {table.title}\n\n{text_table(head, lines)}\n```bash\n{bash}\n```\n'


def row_commands(row: Row) -> list[str]:
    """Training and evaluating one row, as they are typed in the project's directory."""
    data = 'COCO' if row.table.dataset == 'COCO' else 'ADE'
    options = f'--cfg-options data_root=${data}'
    epoch = re.match(r'(\d+) epochs', row.table.schedule)
    work = f'work_dirs/{row.name}'
    last = f'{work}/epoch_{epoch[1]}.pth' if epoch else f'{work}/best_mIoU_iter_*.pth'
    weights = f'pretrained=$WEIGHTS/RMT-{row.variant}.pth'
    return [
        f'tools/dist_train.sh {row.config} $GPUS {options} {weights}',
        f'tools/dist_test.sh {row.config} {last} $GPUS {options}',
    ]


def hours(row: Row, result: dict[str, Any]) -> float:
    """Estimated training time on eight V100 in float32."""
    images, area = SEEN[row.table.name]
    if area is None:
        area = 512 * 512 / (row.shape[0] * row.shape[1])
    return images * area * TRAINING * result['flops_total'] / (GPUS * V100_RATE) / 3600
