"""The log: metrics are written once, and on a CPU a line comes at least every ten seconds or so."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from config_files import RECIPES
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS

from backbone.engine import log


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
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
    monkeypatch.setattr(log, 'is_main_process', lambda: False)
    hook.after_test_epoch(runner)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(log, 'is_main_process', lambda: True)
    hook.after_test_epoch(runner)
    assert json.loads((tmp_path / 'now.json').read_text()) == tag


@pytest.mark.parametrize('mode', ['train', 'val', 'test'])
@pytest.mark.parametrize(
    ('on_cpu', 'seconds', 'expected'),
    [
        (True, 4, [3, 6, 9, 12, 15, 18]),  # the first iteration that ends ten seconds after a line
        (True, 5, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
        (True, 60, list(range(1, 21))),
        (True, 0.4, []),  # all of it is done in ten seconds
        (False, 60, []),
    ],
)
def test_where_iterations_are_slow_a_line_comes_before_its_turn(
    mode: str, on_cpu: bool, seconds: float, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, 'on_cpu', lambda: on_cpu)
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(log.time, 'monotonic', lambda: clock.now)
    logged: list[int] = []
    runner = SimpleNamespace(
        iter=0,
        train_dataloader=range(1000),
        experiment_name='x',
        log_processor=SimpleNamespace(
            get_log_after_iter=lambda _, index, __: ({}, logged.append(index + 1))
        ),
        logger=SimpleNamespace(info=lambda *_: None),
        visualizer=SimpleNamespace(add_scalars=lambda *_, **__: None),
    )
    hook = HOOKS.build(dict(type='MainProcessLoggerHook', interval=50))
    clock.now += 100  # setting up
    getattr(hook, f'before_{mode}_epoch')(runner)
    for index in range(20):
        clock.now += seconds
        getattr(hook, f'after_{mode}_iter')(runner, index)
    assert logged == expected
    for index in range(20, 50):
        getattr(hook, f'after_{mode}_iter')(runner, index)
    assert logged == [*expected, 50]  # the interval stays what it was
