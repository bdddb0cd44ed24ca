"""metafile.yml and model-index.yml in OpenMMLab's format, by which its tools find configs."""

from itertools import groupby
from typing import Any

import yaml

from support.reporting.paper import Row
from support.reporting.results import status

HEAD = '# Written by tools/report.py from docs/paper.yml and docs/results.json: change those.\n'
TASKS = {'bbox': ('Object Detection', 'box AP'), 'segm': ('Instance Segmentation', 'mask AP')}


def metafile(rows: list[Row], results: dict[str, dict]) -> str:
    """The models of one folder, a collection for each recipe with each family of backbones."""
    content: dict[str, list] = {'Collections': [], 'Models': []}
    for (table, family), group in groupby(rows, key=lambda row: (row.table, row.family)):
        collection = f'{family.name} {table.title}'
        content['Collections'].append(
            {
                'Name': collection,
                'Metadata': {
                    'Training Data': table.dataset,
                    'Architecture': [family.name, table.title],
                },
                'Paper': {'URL': family.url, 'Title': family.title},
                'README': f'{table.folder}/README.md',
            }
        )
        content['Models'] += [model(row, collection, results[row.name]) for row in group]
    return HEAD + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def model(row: Row, collection: str, result: dict[str, Any]) -> dict[str, Any]:
    entry = {
        'Name': row.name,
        'In Collection': collection,
        'Config': row.config,
        'Metadata': {
            'Schedule': row.table.schedule,
            'Parameters': result['params'],
            'FLOPs': result['flops_paper'],
            'Input': list(row.shape),
        },
    }
    reproduced = status(row, result['run']) == 'reproduced'
    metrics = result['run']['metrics'] if reproduced else row.paper
    if metrics:
        entry['Metadata']['Results from'] = 'this project' if reproduced else row.family.source
        entry['Results'] = [
            {'Task': task, 'Dataset': row.table.dataset, 'Metrics': {label: metrics[name]}}
            for name, (task, label) in _tasks(row).items()
        ]
    return entry


def _tasks(row: Row) -> dict[str, tuple[str, str]]:
    if 'accuracy/top1' in row.table.metrics:
        return {'accuracy/top1': ('Image Classification', 'Top 1 Accuracy')}
    if 'mIoU' in row.table.metrics:
        return {'mIoU': ('Semantic Segmentation', 'mIoU')}
    return {f'{kind}_mAP': t for kind, t in TASKS.items() if f'{kind}_mAP' in row.table.metrics}


def model_index(metafiles: list[str]) -> str:
    return HEAD + yaml.safe_dump({'Import': metafiles})
