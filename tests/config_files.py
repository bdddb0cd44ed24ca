"""The config files that tests go through."""

import re
from pathlib import Path

from conftest import ROOT

CONFIGS = sorted(p for f in ('det_configs', 'seg_configs') for p in (ROOT / f).glob('*.py'))


def family_and_size(path: Path) -> tuple[str, str]:
    """The backbone that a config's name tells: 'rmt', 't'."""
    return re.search('_(rmt|ravlt|mavit)_([tsbl])_', path.stem).groups()


def _smallest() -> set[Path]:
    """Of each head and family the config with the smallest backbone."""
    found: dict[tuple[str, ...], Path] = {}
    for path in sorted(CONFIGS, key=lambda p: 'tsbl'.index(family_and_size(p)[1])):
        family, size = family_and_size(path)
        head = path.stem.partition(f'_{family}_{size}_')[0]
        found.setdefault((path.parent.name, head, family), path)
    return set(found.values())


RECIPES = [p for p in CONFIGS if family_and_size(p)[0] == 'rmt' or p in _smallest()]
RECIPES += [p for p in CONFIGS if p.stem.startswith('dino_ravlt_') and p not in RECIPES]
"""Every config of RMT; of its successors the smallest of each head, and DINO's.

That the others say the same, configs/test_successors.py proves by their text.
"""
