"""What an import brings: `backbone` the models alone, `backbone.engine` what the configs name."""

import json
import os
import subprocess
import sys
from pathlib import Path

from backbone.weights.families import FAMILIES

ROOT = Path(__file__).parents[2]
NAMES = [
    'AmpWhereAvailable',
    'FamilyHook',
    'MainProcessLoggerHook',
    'RMTRunner',
    'SeedByIterationHook',
    'StrictLoadHook',
]
PROBE = """
import importlib, json, sys
import torch, mmengine.registry, mmengine.runner
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import CheckpointLoader

schemes = dict(CheckpointLoader._schemes)
before = set(sys.modules)
name = sys.argv[1]
Config.fromfile(name) if name.endswith('.py') else importlib.import_module(name)
new = set(sys.modules) - before
ours = {
    f'{registry}': [n for n, m in found.module_dict.items() if m.__module__.startswith('backbone')]
    for registry, found in vars(mmengine.registry).items()
    if isinstance(found, Registry)
}
print(json.dumps({
    'modules': sorted(sys.modules),
    'packages': sorted({n.split('.')[0] for n in new} - sys.stdlib_module_names),
    'schemes are the same': CheckpointLoader._schemes == schemes,
    'registered': {registry: sorted(names) for registry, names in ours.items() if names},
}))
"""


def imported(name: str, marker: Path) -> dict:
    """What a fresh process finds after importing a module, or reading a config.

    A compiler that is run leaves ``marker``.
    """
    compiler = marker.with_suffix('.sh')
    compiler.write_text(f'#!/bin/sh\ntouch {marker}\nexit 1\n')
    compiler.chmod(0o755)
    done = subprocess.run(
        [sys.executable, '-c', PROBE, name],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, 'CXX': str(compiler), 'XDG_CACHE_HOME': str(marker.parent)},
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_backbone_brings_the_models_alone(tmp_path: Path) -> None:
    marker = tmp_path / 'compiled'
    found = imported('backbone', marker)
    ours = [name for name in found['modules'] if name.startswith('backbone.')]
    assert ours
    assert not [n for n in ours if n.split('.')[1] in ('engine', 'weights', 'runner')]
    assert not marker.exists()
    assert found['schemes are the same']
    assert list(found['registered']) == ['MODELS']
    models = ['ProjectionNeck', *(family.name for family in FAMILIES)]
    assert found['registered']['MODELS'] == sorted(models)
    assert found['packages'] == ['backbone']
    heavy = {'mmdet', 'mmseg', 'mmcv', 'safetensors', 'triton', 'torchvision'}
    assert heavy.isdisjoint(found['modules'])


def assert_engine_is_there(found: dict) -> None:
    registered = {name for names in found['registered'].values() for name in names}
    assert registered >= set(NAMES)
    assert not found['schemes are the same']


def test_engine_registers_what_the_configs_name(tmp_path: Path) -> None:
    assert_engine_is_there(imported('backbone.engine', tmp_path / 'compiled'))


def test_a_config_that_the_first_release_dumped_finds_the_engine(tmp_path: Path) -> None:
    dumped = tmp_path / 'config.py'
    dumped.write_text(
        "custom_imports = dict(imports=['backbone', 'backbone.runner'], allow_failed_imports=False)"
        "\nrunner_type = 'RMTRunner'\n"
    )
    assert_engine_is_there(imported(str(dumped), tmp_path / 'compiled'))
