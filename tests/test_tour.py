"""docs/tour.ipynb: it runs from beginning to end, and what is shown of it is what it gives."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from docs_blocks import anchors
from nbclient import NotebookClient
from nbformat import NotebookNode

TOUR = ROOT / 'docs/tour.ipynb'
MOST_BYTES = 500_000
PICTURES = 4


@pytest.fixture(scope='module')
def shown() -> NotebookNode:
    """As it is kept, with what it gave where `make demo` had been run."""
    return nbformat.read(TOUR, as_version=4)


@pytest.fixture(scope='module')
def executed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookNode]:
    """Run where there are no trained weights, in a kernel of its own."""
    folder = tmp_path_factory.mktemp('tour')
    notebook = nbformat.read(TOUR, as_version=4)
    places = {'IPYTHONDIR': '.', 'JUPYTER_RUNTIME_DIR': '.', 'TMPDIR': '.'}
    env = os.environ | {name: str(folder) for name in places} | {'OMP_NUM_THREADS': '1'}
    where = dict(metadata=dict(path=str(folder)))
    NotebookClient(notebook, timeout=600, kernel_name='python3', resources=where).execute(env=env)
    yield notebook
    shutil.rmtree(folder)  # weights


def text(notebook: NotebookNode) -> str:
    """All that its cells print."""
    return ''.join(
        output.text
        for cell in notebook.cells
        for output in cell.get('outputs', [])
        if output.output_type == 'stream'
    )


def pictures(notebook: NotebookNode) -> list[str]:
    """The kinds of all pictures, in their order."""
    kinds = [
        kind for c in notebook.cells for o in c.get('outputs', []) for kind in o.get('data', {})
    ]
    return [kind for kind in kinds if kind.startswith('image/')]


def test_it_runs_without_trained_weights_and_says_so(executed: NotebookNode) -> None:
    said = text(executed)
    assert 'weights: random' in said
    assert 'stride 32: (1, 512, 6, 8)' in said
    assert 'P5: (1, 64, 5, 6)' in said
    assert re.search(r'map\.png: stage 3 .*, block 8', said)
    assert 'my_config.py: the config; to train' in said
    assert "dict(type='PackDetInputs')" in said
    assert len(pictures(executed)) == PICTURES


def test_what_is_shown_is_one_run_with_trained_weights(
    shown: NotebookNode, executed: NotebookNode
) -> None:
    code = [cell for cell in shown.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert pictures(shown) == pictures(executed)
    said = text(shown)
    assert 'weights: ../work_dirs/demo/iter_330.pth' in said
    # same steps, same lines, where these are not of the weights or of a folder's name
    sizes = r'^(?:stride +\d+|P\d): .*$'
    assert re.findall(sizes, said, re.MULTILINE) == re.findall(sizes, text(executed), re.MULTILINE)


def test_it_is_small_and_tells_nothing_of_the_machine(shown: NotebookNode) -> None:
    content = TOUR.read_text(encoding='utf-8')
    assert len(content) < MOST_BYTES
    assert not re.findall(r'(?:/home|/root|/work|/Users|site-packages)\b[^"_]', content)
    assert 'Traceback' not in content


def test_its_links_lead_somewhere(shown: NotebookNode) -> None:
    texts = [cell.source for cell in shown.cells if cell.cell_type == 'markdown']
    links = re.findall(r'\]\(([^)\s]+)\)', '\n'.join(texts))
    assert links
    for link in links:
        path, _, anchor = link.partition('#')
        target: Path = TOUR.parent / path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
