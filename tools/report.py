#!/usr/bin/env python
"""Write the tables of published against ours from docs/paper.yml and what runs left behind.

Takes up the evaluations below every --runs folder, counts costs where a config changed, and writes
docs/results.json, the README.md and metafile.yml of the config folders with their plots in
docs/img, model-index.yml, the variants' table in README.md and the rows in docs/reproduction.md.
Nothing of those is typed by hand. All metrics go on one page to look at, work_dirs/report.html.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from support import cli
from support.files import atomic_write
from support.paths import ROOT
from support.reporting.html import html_page
from support.reporting.markdown import markdown_page, with_variants
from support.reporting.metafile import metafile, model_index
from support.reporting.paper import Row, read_paper
from support.reporting.plots import PLOTS, png, png_name
from support.reporting.reproduction import with_rows
from support.reporting.results import RESULTS, update_results

FOLDERS = ('cls_configs', 'det_configs', 'seg_configs')


def render(rows: list[Row], results: dict[str, dict]) -> dict[str, Callable[[], str | bytes]]:
    """What makes each generated file's content, by the file's path from the root."""
    _, peers = read_paper()
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    guide = (ROOT / 'docs' / 'reproduction.md').read_text(encoding='utf-8')
    files = {
        'work_dirs/report.html': lambda: html_page(rows, results, peers),
        'README.md': lambda: with_variants(readme, rows, results),
        'docs/reproduction.md': lambda: with_rows(guide, rows, results),
    }
    for table in PLOTS:
        files[f'docs/img/{png_name(table)}'] = partial(png, table, rows, results, peers)
    for folder in FOLDERS:
        own = [row for row in rows if row.table.folder == folder]
        files[f'{folder}/README.md'] = lambda own=own: markdown_page(own, results)
        files[f'{folder}/metafile.yml'] = lambda own=own: metafile(own, results)
    files['model-index.yml'] = lambda: model_index([f'{folder}/metafile.yml' for folder in FOLDERS])
    return files


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content)
    print(path.relative_to(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n\n')[0])
    parser.add_argument('--runs', type=Path, nargs='*', default=[], help='folders of work dirs')
    parser.add_argument('--recount', action='store_true', help='count all costs anew')
    args = parser.parse_args()
    rows, _ = read_paper()
    results = update_results(rows, args.runs, args.recount)
    contents = {path: make() for path, make in render(rows, results).items()}  # all, then write
    write(RESULTS, json.dumps(results, indent=1) + '\n')
    for path, content in contents.items():
        write(ROOT / path, content)


if __name__ == '__main__':
    cli.run(main)
