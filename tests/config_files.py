"""The config files that tests go through."""

from conftest import ROOT

CONFIGS = sorted(p for f in ('det_configs', 'seg_configs') for p in (ROOT / f).glob('*.py'))
