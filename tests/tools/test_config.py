"""Configs are found, changed and read quickly, and mmengine is as it was afterwards."""

import argparse
import functools
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import DET_CONFIG, ROOT, TOOLS, run_command
from mmengine.config import Config
from mmengine.config import utils as config_utils
from small_run import small_config
from support import config
from support.cli import UserError


def test_config_is_found_from_the_working_directory_and_from_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.find_config(DET_CONFIG) == str(ROOT / DET_CONFIG)
    (tmp_path / 'mine.py').write_text('')
    assert config.find_config('mine.py') == 'mine.py'


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('det_configs/mask_rcnn_rmt_t_1x_coco.py', f'did you mean {DET_CONFIG}?'),
        ('mine/cats_and_dog.py', 'did you mean mine/cats_and_dogs.py?'),
        ('mine/absent.py', 'mine holds cats_and_dogs.py, other.py'),
        ('det_configs/shapes/x.py', 'det_configs/shapes holds mask_rcnn_rmt_t_fpn_shapes.py'),
        ('x.py', 'the configs are in cls_configs/, det_configs/, seg_configs/'),
        ('/nowhere/x.py', 'the configs are in cls_configs/, det_configs/, seg_configs/'),
    ],
)
def test_a_config_that_is_not_there_names_a_near_one_or_where_they_are(
    name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine').mkdir()
    for each in ('cats_and_dogs', 'other'):
        (tmp_path / f'mine/{each}.py').touch()
    with pytest.raises(UserError) as error:
        config.find_config(name)
    assert str(error.value).startswith(f'{name}: no such config file (from {tmp_path})')
    assert str(error.value).endswith(f'; {expected}')


def test_a_work_dir_that_cannot_be_is_refused_and_one_that_can_be_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.check_work_dir(Config(dict(work_dir=str(tmp_path / 'a/b/c'))))
    assert not list(tmp_path.iterdir())
    config.check_work_dir(Config(dict(work_dir=str(tmp_path))))
    (tmp_path / 'file').touch()
    for place in ('file', 'file/below'):
        with pytest.raises(
            UserError, match=rf'^work_dir {tmp_path}/{place}: .*file is no directory'
        ):
            config.check_work_dir(Config(dict(work_dir=str(tmp_path / place))))
    monkeypatch.setattr(os, 'access', lambda path, mode: path != tmp_path)  # root may write all
    with pytest.raises(UserError, match=rf'^work_dir {tmp_path}/new: {tmp_path} cannot be written'):
        config.check_work_dir(Config(dict(work_dir=str(tmp_path / 'new'))))


def test_a_disk_that_refuses_the_work_dir_blames_it_and_not_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = small_config(tmp_path / 'new')

    def refuse(path: str, *_: object) -> None:
        raise PermissionError(13, 'Permission denied', path)

    monkeypatch.setattr('mmengine.mkdir_or_exist', refuse)
    with pytest.raises(UserError, match=rf'^work_dir {tmp_path}/new: .*Permission denied'):
        config.build_runner(cfg)


@pytest.mark.parametrize(
    ('variable', 'given', 'expected'),
    [(None, 0, '0'), (None, 3, '3'), ('SLURM_LOCALID', 0, '2'), ('LOCAL_RANK', 0, '2')],
)
def test_the_process_knows_its_place_on_its_machine(
    variable: str | None, given: int, expected: str, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    for name in ('LOCAL_RANK', 'SLURM_LOCALID'):
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    if variable:
        monkeypatch.setenv(variable, '2')
    (tmp_path / 'mine.py').write_text('')
    config.load_config(
        argparse.Namespace(
            config=str(tmp_path / 'mine.py'), cfg_options={}, work_dir=None, launcher='slurm',
            local_rank=given,
        )
    )  # fmt: skip
    assert os.environ['LOCAL_RANK'] == expected


def test_metafiles_are_read_once_while_configs_are_read_and_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = []

    def load(path: str) -> dict:
        read.append(path)
        return mmengine_load(path)

    mmengine_load = config_utils.load
    monkeypatch.setattr(config_utils, 'load', load)
    monkeypatch.setattr(config, '_load_once', functools.cache(load))
    cfg = config.from_file(ROOT / DET_CONFIG)
    assert config_utils.load is load
    assert len(read) == len(set(read)) > 10
    count = len(read)
    assert config.from_file(ROOT / DET_CONFIG).to_dict() == cfg.to_dict()
    assert len(read) == count
    with pytest.raises(FileNotFoundError):
        config.from_file('absent.py')
    assert config_utils.load is load


def test_a_folder_called_backbone_does_not_shadow_the_package(tmp_path: Path) -> None:
    """In a process of its own: here the package is imported already."""
    (tmp_path / 'backbone').mkdir()
    (tmp_path / 'backbone/__init__.py').write_text('raise RuntimeError("not this one")')
    code = 'import support, backbone.rmt; print(backbone.__file__)'
    path = os.pathsep.join((str(tmp_path), str(TOOLS)))
    done = run_command(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=path)
    assert done.stdout.strip() == str(ROOT / 'backbone/__init__.py'), done.stderr


def test_another_backbone_that_was_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ModuleType('backbone')
    other.__path__ = [str(tmp_path)]
    ours = ('backbone', 'rmt_downstream')
    for name in [name for name in sys.modules if name.split('.')[0] in ours]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'backbone', other)
    # an editable installation's finder would know the parts of the package all the same
    finders = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]
    monkeypatch.setattr(sys, 'meta_path', finders)
    with pytest.raises(ImportError, match=r'another folder is taken .*: rename it') as error:
        Config.fromfile(ROOT / DET_CONFIG)
    assert str(tmp_path) in str(error.value)
