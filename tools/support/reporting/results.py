"""What this project measured of each config: its costs, and evaluations that runs left behind.

``docs/results.json`` keeps it, so that a table does not need the work directories of long ago.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mmengine.config import Config

from support import cli
from support.config import from_file
from support.paths import ROOT
from support.reporting.paper import Row

RESULTS = ROOT / 'docs' / 'results.json'
VAL_IMAGES = {'COCO': 5000, 'ADE20K': 2000, 'ImageNet-1k': 50000}
"""Images of the validation sets."""

TOLERANCE = 0.3
"""How far below the published headline metric a run may stay and still reproduce it, in percent."""

# what an evaluation depends on, and the keys inside that change no result
_EVALUATION = ('model', 'test_dataloader', 'test_evaluator')
_FREE = {
    'ann_file', 'attention', 'data_prefix', 'data_root', 'init_cfg', 'norm_cfg', 'num_workers',
    'persistent_workers', 'with_cp',
}  # fmt: skip
_DUMPS = ('DumpDetResults', 'DumpResults', 'DumpSegResults', 'PredictionsFile')


@dataclass(frozen=True)
class Run:
    """One evaluation by tools/test.py.

    Attributes:
        metrics: in percent, by the names that docs/paper.yml uses.
        images: how many were evaluated.
        changed: keys of the config that the run had otherwise.
        checkpoint: file name of the weights.
        time: when, as the run's folder tells.
    """

    metrics: dict[str, float]
    images: int
    changed: list[str]
    checkpoint: str
    time: str


def evaluation_settings(cfg: Config) -> dict[str, Any]:
    """What the result of an evaluation depends on, as {dotted key: value}."""
    settings = {key: cfg.get(key) for key in _EVALUATION}
    if isinstance(settings['test_evaluator'], list):  # by `--out`, which changes no result
        metrics = [m for m in settings['test_evaluator'] if m['type'] not in _DUMPS]
        settings['test_evaluator'] = metrics[0] if len(metrics) == 1 else metrics
    return dict(_flat(settings, ''))


def _flat(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        if key in _FREE:
            continue
        if isinstance(value, dict | list | tuple) and value:
            yield from _flat(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', list(value) if isinstance(value, tuple) else value


def config_hash(cfg: Config) -> str:
    """Twelve digits that tell whether a config evaluates the same model in the same way."""
    text = json.dumps(evaluation_settings(cfg), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def find_runs(folder: Path, rows: list[Row]) -> Iterator[tuple[Row, Run]]:
    """Evaluations below ``folder``: FOLDER/CONFIG/TIME/TIME.json beside its log and config."""
    by_name = {row.name: row for row in rows}
    for file in sorted(folder.glob('**/*.json')):
        time, log = file.parent.name, file.with_suffix('.log')
        used = file.parent / 'vis_data' / 'config.py'
        row = by_name.get(file.parent.parent.name)
        if row is None or file.stem != time or not (log.is_file() and used.is_file()):
            continue
        yield row, _read_run(row, file, log, used)


def _read_run(row: Row, file: Path, log: Path, used: Path) -> Run:
    try:
        values = json.loads(file.read_text(encoding='utf-8'))
        cfg = from_file(used, import_custom_modules=False)
    except (ValueError, SyntaxError) as error:
        raise cli.UserError(f'{file}: not what tools/test.py writes: {error}') from error
    metrics = {}
    for name in row.table.metrics:
        if f'coco/{name}' in values:
            metrics[name] = round(100 * values[f'coco/{name}'], 2)
        elif name in values:
            metrics[name] = round(values[name], 2)  # others are in percent
    text = log.read_text(encoding='utf-8')
    steps = re.findall(r'(?:Epoch|Iter)\(test\)\s+\[(\d+)/\1\]', text)
    processes = re.search(r'GPU number: (\d+)', text)
    if not metrics or not steps or not processes:
        raise cli.UserError(f'{file}: has no {row.table.metrics[0]}, or {log.name} has no end')
    images = int(steps[-1]) * int(processes[1]) * cfg.test_dataloader.batch_size
    ours = evaluation_settings(from_file(ROOT / row.config))
    theirs = evaluation_settings(cfg)
    changed = sorted(k for k in ours.keys() | theirs if ours.get(k) != theirs.get(k))
    # the last steps of several processes may repeat some images
    whole = VAL_IMAGES[row.table.dataset]
    images = whole if whole <= images < whole * 1.01 else images
    time = datetime.strptime(file.stem, '%Y%m%d_%H%M%S').isoformat(sep=' ')
    return Run(metrics, images, changed, Path(cfg.load_from).name, time)


def better(run: dict[str, Any], row: Row) -> tuple:
    """Sort key: runs over everything with nothing changed first, then larger, then later."""
    return is_whole(run, row), run['images'], run['time']


def is_whole(run: dict[str, Any], row: Row) -> bool:
    return run['images'] >= VAL_IMAGES[row.table.dataset] and not run['changed']


def status(row: Row, run: dict[str, Any] | None) -> str:
    """'published', 'reproduced', 'measured on a subset', 'not run' or 'ours, not run'."""
    if run and not is_whole(run, row):
        return 'measured on a subset'
    headline = row.table.metrics[0]
    if run and run['metrics'][headline] >= row.paper.get(headline, 0) - TOLERANCE:
        return 'reproduced'
    not_run = 'ours, not run' if row.table.ours else 'not run'
    return 'published' if row.paper else not_run


def read_results() -> dict[str, dict[str, Any]]:
    """docs/results.json: {config: {hash, params, flops_paper, flops_total, run or null}}."""
    return json.loads(RESULTS.read_text(encoding='utf-8')) if RESULTS.is_file() else {}


def update_results(rows: list[Row], folders: list[Path], recount: bool) -> dict[str, dict]:
    """Count the costs of new and changed configs, take up new runs; returns all results."""
    from get_flops import count

    old, results = read_results(), {}
    for i, row in enumerate(rows, start=1):
        cfg = from_file(ROOT / row.config)
        known, digits = old.get(row.name, {}), config_hash(cfg)
        if recount or known.get('hash') != digits:
            print(f'[{i}/{len(rows)}] counting {row.name}', flush=True)
            known = {'hash': digits, **asdict(count(cfg, row.shape)['all'])}
        results[row.name] = {**known, 'run': known.get('run')}
    for folder in folders:
        if not folder.is_dir():
            raise cli.UserError(f'--runs {folder}: no such directory')
        for row, run in find_runs(folder, rows):
            entry = results[row.name]
            candidates = [asdict(run)] + ([entry['run']] if entry['run'] else [])
            entry['run'] = max(candidates, key=lambda r: better(r, row))
    return results
