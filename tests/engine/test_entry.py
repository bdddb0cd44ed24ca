"""The keys are honoured by what everybody's scripts call, and nobody else's config is touched."""

import runpy
import sys
from pathlib import Path

import pytest
from conftest import DET_CONFIG, ROOT
from mmengine.config import Config
from mmengine.fileio import dump
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from small_run import quick, small_config

from backbone.engine import RMTRunner

OURS = """
_base_ = {base!r}
data_root = '/mine'
pretrained = 'a.pth'
"""


@pytest.fixture
def ours(tmp_path: Path) -> Config:
    """A config file of a user's with both keys in it."""
    path = tmp_path / 'mine.py'
    path.write_text(OURS.format(base=str(ROOT / DET_CONFIG)))
    return Config.fromfile(path)


def test_a_config_file_is_read_with_its_keys_carried_on(ours: Config) -> None:
    assert ours.train_dataloader.dataset.data_root == '/mine/'
    assert ours.val_evaluator.ann_file == '/mine/annotations/instances_val2017.json'
    assert ours.model.backbone.init_cfg.checkpoint == 'a.pth'


def test_options_merged_are_carried_on(ours: Config) -> None:
    ours.merge_from_dict({'data_root': '/other', 'pretrained': None})
    assert ours.train_dataloader.dataset.data_root == '/other/'
    assert ours.val_evaluator.ann_file == '/other/annotations/instances_val2017.json'
    assert not ours.model.backbone.init_cfg


def test_a_dumped_config_is_read_the_same_and_moves_on(ours: Config, tmp_path: Path) -> None:
    ours.dump(tmp_path / 'dumped.py')
    dumped = Config.fromfile(tmp_path / 'dumped.py')
    assert dumped.to_dict() == ours.to_dict()
    dumped.merge_from_dict({'data_root': '/mine/part'})
    assert dumped.train_dataloader.dataset.data_root == '/mine/part/'


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    quick(monkeypatch)
    found = small_config(tmp_path)
    found.train_dataloader.dataset.data_root = 'data/coco/'
    found.data_root = '/mine'
    return found


def test_the_plain_runner_becomes_ours(cfg: Config) -> None:
    cfg.runner_type = 'RMTRunner'
    before = cfg.to_dict()
    runner = Runner.from_cfg(cfg)
    assert type(runner) is RMTRunner
    assert runner.cfg.train_dataloader.dataset.data_root == '/mine/'
    assert cfg.to_dict() == before


def test_a_runner_made_from_ours_is_built_as_named(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mine(RMTRunner): ...

    monkeypatch.setitem(RUNNERS.module_dict, 'Mine', Mine)
    for name in ('Mine', 'mmengine.Mine', Mine):
        cfg.runner_type = name
        runner = Runner.from_cfg(cfg)
        assert type(runner) is Mine
        assert runner.cfg.train_dataloader.dataset.data_root == '/mine/'


def test_somebodys_own_runner_stays_and_has_the_keys(cfg: Config) -> None:
    class Own(Runner): ...

    cfg.runner_type = 'RMTRunner'
    runner = Own.from_cfg(cfg)
    assert type(runner) is Own
    assert runner.cfg.train_dataloader.dataset.data_root == '/mine/'


@pytest.mark.parametrize('runner_type', [None, 'Runner', 'FlexibleRunner', 'Unknown', 7])
def test_nobody_elses_config_is_touched(runner_type: object, cfg: Config) -> None:
    if runner_type:
        cfg.runner_type = runner_type
    before = cfg.to_dict()
    cfg.merge_from_dict({'pretrained': ['a', 'b']})
    assert cfg.to_dict() == {**before, 'pretrained': ['a', 'b']}
    assert Config(before).to_dict() == before
    runner = Runner.from_cfg(cfg)
    assert type(runner) is Runner
    assert runner.cfg.train_dataloader.dataset.data_root == 'data/coco/'


def run_mmdets(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script of the installed mmdet in this process."""
    import mmdet

    path = Path(mmdet.__file__).parent / '.mim/tools' / name
    monkeypatch.setattr(sys, 'argv', [path.name, *map(str, arguments)])
    runpy.run_path(str(path), run_name='__main__')


@pytest.mark.parametrize('place', ['option', 'file'])
def test_mmdets_browse_dataset_finds_the_data(
    place: str, tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / 'mine.py'
    config.write_text(f'_base_ = {str(ROOT / DET_CONFIG)!r}\n')
    options = ['--cfg-options', f'data_root={tiny_coco}']
    if place == 'file':
        config.write_text(f'{config.read_text()}data_root = {str(tiny_coco)!r}\n')
        options = []
    # without a display; mmdet's list of items is that of a later data set, one image in one
    out = tmp_path / 'out'
    seen = []
    monkeypatch.setattr('mmengine.ProgressBar.update', lambda self: seen.append(self.task_num))
    monkeypatch.setattr(
        'mmdet.visualization.DetLocalVisualizer.add_datasample', lambda *_, **__: None
    )
    monkeypatch.chdir(tmp_path)
    run_mmdets(
        'analysis_tools/browse_dataset.py', config, '--output-dir', out, *options,
        monkeypatch=monkeypatch,
    )  # fmt: skip
    assert seen


def test_mmdets_confusion_matrix_finds_the_data(
    tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    nothing = dict(labels=torch.zeros(0), bboxes=torch.zeros(0, 4), scores=torch.zeros(0))
    dump([dict(pred_instances=nothing)] * 4, tmp_path / 'found.pkl')
    monkeypatch.setenv('MPLBACKEND', 'agg')
    drawn = []
    monkeypatch.setattr('matplotlib.pyplot.savefig', lambda *a, **k: drawn.append(a))
    run_mmdets(
        'analysis_tools/confusion_matrix.py', ROOT / DET_CONFIG, tmp_path / 'found.pkl', tmp_path,
        '--cfg-options', f'data_root={tiny_coco}', monkeypatch=monkeypatch,
    )  # fmt: skip
    assert drawn


def test_a_model_built_by_hand_has_the_weights_that_the_key_names(
    tiny_coco: Path, tmp_path: Path
) -> None:
    import torch

    cfg = Config.fromfile(ROOT / DET_CONFIG)
    init_default_scope('mmdet')
    source = MODELS.build(cfg.model.backbone)
    torch.save(source.state_dict(), tmp_path / 'rmt.pth')
    cfg.merge_from_dict({'pretrained': str(tmp_path / 'rmt.pth')})
    made = MODELS.build(cfg.model.backbone)
    made.init_weights()
    assert torch.equal(made.patch_embed.proj[0].weight, source.patch_embed.proj[0].weight)
