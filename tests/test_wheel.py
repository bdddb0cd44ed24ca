"""The wheel: what is in it, and that it works in another project, whatever folders that has."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from conftest import DET_CONFIG, ROOT, TOOLS, run_command

import rmt_downstream
from rmt_downstream import commands

PACKAGES = ('backbone', 'rmt_downstream')
FOLDERS = ('cls_configs', 'det_configs', 'seg_configs', 'tools')
OF_THE_PROJECT = ('README.md', 'metafile.yml', 'setup.sh', 'build_progress.sh')
"""Files of those folders that are of no use outside of the project."""
NO_COMMAND = {
    'benchmark': "compares with the paper's numbers, which are in docs/",
    'coco_subset': 'behind rmt-demo',
    'compile_kernels': 'for who changes the kernels',
    'report': "writes the project's own pages",
    'shapes_dataset': 'behind rmt-demo',
}
"""Tools that an installation does not call by a name of their own, and why."""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip makes of the source distribution, which is made of a copy of this tree."""
    copy = tmp_path_factory.mktemp('project')
    for name in (*PACKAGES, *FOLDERS, 'tests'):
        shutil.copytree(ROOT / name, copy / name)
    for name in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, copy)
    (copy / 'tools/__pycache__').mkdir(exist_ok=True)
    (copy / 'tools/__pycache__/train.cpython-311.pyc').touch()
    sdist = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, '-c', sdist], cwd=copy, check=True, capture_output=True)
    (made,) = (copy / 'dist').iterdir()
    offline = ('--no-deps', '--no-build-isolation', '--no-index', '--disable-pip-version-check')
    pip = [sys.executable, '-m', 'pip', 'wheel', *offline, '-w', copy, made]
    subprocess.run(pip, check=True, capture_output=True)
    (built,) = copy.glob('*.whl')
    return built


@pytest.fixture(scope='module')
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site-packages of an environment with the wheel, and the frameworks of this one."""
    place = tmp_path_factory.mktemp('environment')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', place], check=True)
    pip = [sys.executable, '-m', 'pip', '--python', place / 'bin/python', 'install', '--quiet']
    pip += ['--no-deps', '--no-index', '--no-compile', '--disable-pip-version-check', wheel]
    subprocess.run(pip, check=True)
    (found,) = place.glob('lib/*/site-packages')
    # only what lies in this folder: the .pth of an editable installation is not followed
    (found / 'frameworks.pth').write_text(sysconfig.get_paths()['purelib'])
    # as docs/install.md has it: mmdet's tools import torchvision, which may not fit torch
    helper = found / 'backbone/engine/torchvision_import.py'
    subprocess.run([place / 'bin/python', helper], check=True, env=os.environ | {'PYTHONPATH': ''})
    return found


@pytest.fixture(scope='module')
def call(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run a command of that environment in another project, whose folders have our names."""
    other = tmp_path_factory.mktemp('another')
    for name in ('backbone', 'det_configs', 'support', 'tools'):
        (other / name).mkdir()
        (other / name / '__init__.py').write_text(f'raise RuntimeError("another {name}")\n')

    def run(name: str, *words: object) -> str:
        command = [site.parents[2] / 'bin' / name, *words]
        done = run_command(*command, cwd=other, PYTHONPATH='.', PYTHONDONTWRITEBYTECODE='1')
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.folder = other
    return run


def files(folder: Path) -> set[str]:
    """Relative paths of the files below a folder, without Python's caches."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def test_it_holds_the_packages_the_configs_and_the_tools_and_nothing_else(wheel: Path) -> None:
    expected = set()
    for name in (*PACKAGES, *FOLDERS):
        for path in files(ROOT / name):
            if Path(path).name in OF_THE_PROJECT:
                continue
            beside = name in PACKAGES and not path.startswith('_base_/')
            expected.add(f'{name}/{path}' if beside else f'rmt_downstream/{name}/{path}')
    info = f'rmt_downstream-{rmt_downstream.__version__}.dist-info'
    parts = 'METADATA', 'RECORD', 'WHEEL', 'entry_points.txt', 'licenses/LICENSE', 'top_level.txt'
    expected |= {f'{info}/{part}' for part in parts}
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == expected
        licence = archive.read(f'{info}/licenses/LICENSE')
        assert (
            f'Version: {rmt_downstream.__version__}\n' in archive.read(f'{info}/METADATA').decode()
        )
    assert licence == (ROOT / 'LICENSE').read_bytes()


def test_every_tool_is_a_command_or_has_a_reason(site: Path) -> None:
    (info,) = site.glob('rmt_downstream-*.dist-info')
    scripts = PathDistribution(info).entry_points.select(group='console_scripts')
    modules = {script.value.partition(':')[0] for script in scripts}
    assert modules == {'rmt_downstream.commands'}
    tools = {path.stem for path in TOOLS.iterdir() if path.suffix in ('.py', '.sh')}
    assert {script.attr for script in scripts} == tools - set(NO_COMMAND)
    assert set(NO_COMMAND) <= tools
    for script in scripts:
        stem = script.name.removeprefix('rmt-').replace('-', '_')
        assert script.attr == {'demo': 'quickstart'}.get(stem, stem)


LOOK = """
import contextlib, io, json, sys
import rmt_downstream
from importlib.metadata import entry_points
from mmengine.config import Config, utils

names, *data = json.loads(sys.argv.pop())
load, kept = utils.load, {}  # of each metafile once, as in tools/support/config.py
utils.load = lambda path: kept.get(path) or kept.setdefault(path, load(path))
leaves = [name for name in names if Config.fromfile(rmt_downstream.config(name)).model.backbone]

def said_by(script, *words):
    sys.argv = [f'bin/{script.name}', *words]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            script.load()()
        except SystemExit as end:
            assert end.code == 0
    return out.getvalue()

scripts = [
    script for script in entry_points(group='console_scripts')
    if script.value.startswith('rmt_downstream') and script.load().func.__name__ == 'run_tool'
]
said = {script.name: said_by(script, '--help') for script in scripts}
(new_config,) = (script for script in scripts if script.name == 'rmt-new-config')
written = said_by(new_config, *data)
places = {m.__name__: m.__file__ for m in map(sys.modules.get, ('backbone', 'support'))}
print(json.dumps(dict(leaves=leaves, said=said, places=places, written=written)))
"""


def test_configs_load_commands_say_how_they_are_used_and_own_configs_inherit_by_name(
    site: Path, call: Callable[..., str], tiny_coco: Path
) -> None:
    """One process for all three, most of whose time is its imports."""
    names = [p.name for p in ROOT.glob('*_configs/**/*.py') if '_base_' not in p.parts]
    asked = json.dumps([names, str(tiny_coco), 'own.py', '--files', 'files'])
    found = json.loads(call('python', '-W', 'ignore', '-c', LOOK, asked).splitlines()[-1])
    assert found['places'] == {
        'backbone': str(site / 'backbone/__init__.py'),
        'support': str(site / 'rmt_downstream/tools/support/__init__.py'),
    }
    assert found['leaves'] == names
    assert len(found['said']) > 8
    for name, text in found['said'].items():
        assert text.startswith(f'usage: {name} ')
    assert '    rmt-train OUT.py\n' in found['said']['rmt-new-config']
    assert found['written'].endswith('to train: rmt-train own.py\n')
    bases = (call.folder / 'own.py').read_text()
    assert "__import__('rmt_downstream').config('backbone/_base_/rmt_t.py')" in bases
    assert 'site-packages' not in bases


def test_another_project_trains_and_mmdet_evaluates(
    site: Path, call: Callable[..., str], tiny_coco: Path, tiny_det: list[str]
) -> None:
    """A config that inherits by name, beside folders of our names that are on Python's path."""
    before = files(site)
    name = DET_CONFIG.rpartition('/')[2]
    (call.folder / 'mine.py').write_text(
        f"_base_ = __import__('rmt_downstream').config({name!r})\n"
        "randomness = dict(seed=1)\n"
    )  # fmt: skip
    quick = ('train_cfg.val_interval=9', 'default_hooks.checkpoint.save_optimizer=False')
    call('rmt-train', 'mine.py', '--cfg-options', *tiny_det, *quick)
    (checkpoint,) = (call.folder / 'work_dirs/mine').glob('*.pth')
    (dumped,) = (call.folder / 'work_dirs/mine').glob('*.py')
    test = Path(sysconfig.get_paths()['purelib']) / 'mmdet/.mim/tools/test.py'
    said = call('python', '-W', 'ignore', test, dumped, checkpoint)
    assert 'coco/segm_mAP' in said
    assert files(site) == before, 'all that is written goes into the working directory'


def test_config_finds_by_as_much_of_the_path_as_is_needed() -> None:
    for name in ('rmt_t.py', 'backbone/_base_/rmt_t.py'):
        assert rmt_downstream.config(name) == str(ROOT / 'backbone/_base_/rmt_t.py')
    assert rmt_downstream.config(DET_CONFIG) == str(ROOT / DET_CONFIG)


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('mask_rcnn_rmt_t_1x_coco.py', 'did you mean mask_rcnn_rmt_t_fpn_1x_coco.py?'),
        ('default_runtime.py', 'cls_configs/_base_/default_runtime.py, det_configs/_base_'),
        ('nt_coco.py', 'no config of RMT-Downstream; they are in'),
    ],
)
def test_a_name_that_tells_no_config_is_refused(name: str, expected: str) -> None:
    with pytest.raises(FileNotFoundError, match=f'^{name}: ') as error:
        rmt_downstream.config(name)
    assert expected in str(error.value)


def test_a_launcher_runs_with_the_python_of_the_installation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = []
    monkeypatch.setattr(os, 'execvpe', lambda *call: ran.append(call))
    monkeypatch.setattr(sys, 'argv', ['rmt-dist-train', 'CONFIG', '2'])
    commands.dist_train()
    ((file, words, env),) = ran
    assert (file, words) == ('bash', ['bash', str(TOOLS / 'dist_train.sh'), 'CONFIG', '2'])
    assert env['PYTHON'] == sys.executable
