"""Correct work passes, usual or not: every data set that mmdet and mmseg have a config for."""

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import unusual_data
from mmengine.config import Config
from mmengine.registry import init_default_scope
from support import checks
from support.checks import metrics
from support.checks.dataset import Leaf, leaves

SPLITS = ('train', 'val', 'test')
NEED_PACKAGES = {'dsdl.py': 'dsdl', 'levir_256x256.py': 'osgeo'}
"""Configs whose readers import what a test can not stand in for."""


def folder(scope: str) -> Path:
    return Path(importlib.import_module(scope).__file__).parent / '.mim/configs'


def bases(scope: str) -> list[str]:
    """The data sets of a package."""
    found = sorted(path.name for path in (folder(scope) / '_base_/datasets').glob('*.py'))
    return [f'{scope}/{name}' for name in found if name not in NEED_PACKAGES]


@pytest.fixture(autouse=True)
def _packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the readers of LVIS and of panoptic pictures import, as far as they use it."""
    from mmdet.datasets.api_wrappers import COCO

    lvis, panoptic = types.ModuleType('lvis'), types.ModuleType('panopticapi')
    lvis.LVIS = COCO
    panoptic.utils = types.SimpleNamespace(
        rgb2id=lambda rgb: (rgb.astype(np.int64) * (1, 256, 256**2)).sum(-1)
    )
    monkeypatch.setitem(sys.modules, 'lvis', lvis)
    monkeypatch.setitem(sys.modules, 'panopticapi', panoptic)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Config, str], Config]:
    """Writes the data of a config below the working directory."""
    monkeypatch.chdir(tmp_path)

    def make(cfg: Config, scope: str) -> Config:
        cfg.setdefault('model', {})
        cfg.default_scope = scope
        init_default_scope(scope)
        for split in SPLITS:
            for key, dataset in leaves(
                cfg.get(f'{split}_dataloader', {}).get('dataset', {}), split
            ):
                if 'type' in dataset:
                    unusual_data.write(Leaf(key, dataset))
            for _, metric in metrics.metrics_of(cfg.get(f'{split}_evaluator'), split):
                if 'ann_file' in metric and not Path(metric['ann_file']).exists():
                    unusual_data.put(metric['ann_file'], '{}')  # nothing of ours reads it
        return cfg

    return make


@pytest.mark.parametrize('name', [*bases('mmdet'), *bases('mmseg')])
def test_every_data_set_of_the_packages_passes(
    name: str, made: Callable[[Config, str], Config]
) -> None:
    scope, file = name.split('/')
    cfg = made(Config.fromfile(folder(scope) / '_base_/datasets' / file), scope)
    checks.check_data(cfg, SPLITS)
