"""Hooks of every config: metrics are written once."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from config_files import CONFIGS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS

from backbone.engine import hooks


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_one_process_alone_writes_the_metrics(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = HOOKS.build(Config.fromfile(path).default_hooks.logger)
    tag = {'coco/bbox_mAP': 0.5}
    runner = SimpleNamespace(
        log_dir=tmp_path,
        timestamp='now',
        test_dataloader=[0],
        log_processor=SimpleNamespace(get_log_after_epoch=lambda *_, **__: (tag, 'a line')),
        logger=MMLogger.get_instance('test_hooks'),
    )
    hook.before_run(runner)
    monkeypatch.setattr(hooks, 'is_main_process', lambda: False)
    hook.after_test_epoch(runner)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(hooks, 'is_main_process', lambda: True)
    hook.after_test_epoch(runner)
    assert json.loads((tmp_path / 'now.json').read_text()) == tag
