"""docs/architecture.md: what is imported stands to the right of what imports it."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / 'backbone'
ORDER = ['engine', 'weights', 'rmt', 'network', 'kernels.layers', 'layers', 'attention', 'kernels']
"""From left to right; the longest name that fits counts. ``kernels`` are build and convolution, and
a module beside ``rmt`` is another family of backbones."""
NO_FAMILY = ('__init__', 'runner')  # the package itself, and the old name of the engine


def place(module: str) -> int | None:
    """Where a module below ``backbone`` stands; None for the package itself."""
    fitting = [name for name in ORDER if f'{module}.'.startswith(f'{name}.')]
    if not fitting and (not module or module.split('.')[0] in NO_FAMILY):
        return None
    return ORDER.index(max(fitting, key=len, default='rmt'))


def imported(file: Path) -> set[str]:
    """The modules below ``backbone`` that a file imports outside its functions."""
    package = file.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            path = [*base, *(node.module or '').split('.')] if node.module else list(base)
            found.add('.'.join(path))
            found |= {'.'.join([*path, name.name]) for name in node.names}
    return found


FILES = [f for f in sorted(PACKAGE.glob('**/*.py')) if '_base_' not in f.parts]


@pytest.mark.parametrize('file', FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_imports_what_stands_to_its_left(file: Path) -> None:
    own = place('.'.join(file.relative_to(PACKAGE).with_suffix('').parts))
    if own is None:
        return
    assert [name for name in imported(file) if (place(name) or own) < own] == []


def test_the_page_shows_this_order() -> None:
    page = (ROOT / 'docs/architecture.md').read_text()
    assert f'tools ──> {" ──> ".join(ORDER[:-1]).replace(".", "/")} ──> kernels/build' in page
