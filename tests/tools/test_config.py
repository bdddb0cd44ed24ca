"""Configs are found, changed and read quickly, and mmengine is as it was afterwards."""

import functools
from pathlib import Path

import pytest
from conftest import DET_CONFIG, ROOT
from mmengine.config import Config
from mmengine.config import utils as config_utils
from support import config


def test_config_is_found_from_the_working_directory_and_from_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.find_config(DET_CONFIG) == str(ROOT / DET_CONFIG)
    (tmp_path / 'mine.py').write_text('')
    assert config.find_config('mine.py') == 'mine.py'


def test_lists_become_tuples_where_the_config_has_one() -> None:
    cfg = Config(dict(train_pipeline=[dict(scale=(1333, 800))]))
    config.merge(cfg, {'train_pipeline.0.scale': [640, 480]})
    assert cfg.train_pipeline[0].scale == (640, 480)


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
