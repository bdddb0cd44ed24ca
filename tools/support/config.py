"""Reading a config as a user named and changed it, and building the runner that it describes."""

import argparse
import difflib
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from backbone.engine import PortableRunner, apply_keys
from support.cli import UserError, one_line
from support.paths import ROOT

# top-level keys that a runner reads though a config may not have them yet
_OPTIONAL_KEYS = {
    'auto_scale_lr', 'custom_hooks', 'data_root', 'default_hooks', 'env_cfg', 'experiment_name',
    'find_unused_parameters', 'launcher', 'load_from', 'log_level', 'log_processor',
    'model_wrapper_cfg', 'optim_wrapper', 'param_scheduler', 'pretrained', 'randomness', 'resume',
    'sync_bn', 'test_cfg', 'test_dataloader', 'test_evaluator', 'train_cfg', 'train_dataloader',
    'val_cfg', 'val_dataloader', 'val_evaluator', 'visualizer', 'work_dir',
}  # fmt: skip

# the smallest sensible value of what people change most
_LEAST = {
    'train_cfg.max_epochs': 1,
    'train_cfg.max_iters': 1,
    'train_cfg.val_interval': 1,
    'auto_scale_lr.base_batch_size': 1,
    **{f'{split}_dataloader.batch_size': 1 for split in ('train', 'val', 'test')},
    **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')},
}

_load_once = functools.cache(config_utils.load)


@contextmanager
def metafiles_read_once() -> Iterator[None]:
    """Inside, mmengine reads each metafile of mmdet once.

    By itself it reads all 100 again for each ``mmdet::`` base: most of a second a config.
    """
    load = config_utils.load
    config_utils.load = _load_once
    try:
        yield
    finally:
        config_utils.load = load


def from_file(path: str | os.PathLike, **options: bool) -> Config:
    """``Config.fromfile``, quicker."""
    with metafiles_read_once():
        return Config.fromfile(path, **options)


def load_config(args: argparse.Namespace) -> Config:
    """:func:`read_config`, with the launcher and a work directory for a runner."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    name = Path(args.config).stem
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or os.path.join('work_dirs', name)
    return cfg


def read_config(name: str, options: dict) -> Config:
    """The config of that path with the changes of ``--cfg-options``, its top-level keys applied.

    A relative path is looked up in the working directory, then in this project.

    Raises:
        UserError: no such config, one that does not load, or a change that does not fit it.
    """
    path = find_config(name)
    try:
        cfg = from_file(path)
    except Exception as error:
        reason = f'{type(error).__name__}: {one_line(error)}'
        raise UserError(f'{path}: not a config: {reason}') from error
    merge(cfg, options)
    return apply_keys(cfg)


def find_config(name: str) -> str:
    """Path of a config file given by the user; names the nearest where there is none."""
    for path in (Path(name), ROOT / name):
        if path.is_file():
            return str(path)
    ours = {
        str(p.relative_to(ROOT)) for p in ROOT.glob('*_configs/**/*.py') if '_base_' not in p.parts
    }
    near = difflib.get_close_matches(Path(name).stem, [Path(p).stem for p in ours], 1, 0.0)
    hint = next((p for p in ours if near and Path(p).stem == near[0]), 'det_configs/')
    raise UserError(f'{name}: no such config file (from {os.getcwd()}); did you mean {hint}?')


def merge(cfg: Config, options: dict) -> None:
    """Change ``cfg`` as ``--cfg-options`` says; refuse what can not be meant."""
    for key in options:
        top = key.split('.')[0]
        known = set(cfg) | _OPTIONAL_KEYS
        if top not in known:
            near = difflib.get_close_matches(top, known, 1)
            hint = f'; did you mean {near[0]}?' if near else ''
            raise UserError(f'--cfg-options {key}: the config has no {top}{hint}')
    for key, value in options.items():
        if isinstance(value, list) and isinstance(_at(cfg, key), tuple):
            value = tuple(value)  # scale=1333,800 means (1333, 800): mmcv refuses the list
        try:
            cfg.merge_from_dict({key: value})
        except (KeyError, TypeError, ValueError, AssertionError, IndexError) as error:
            raise UserError(f'--cfg-options {key}={value}: {one_line(error)}') from error
    for key, least in _LEAST.items():
        value = _at(cfg, key)
        if value is not None and (not isinstance(value, int) or value < least):
            raise UserError(f'{key}={value}: must be a whole number of at least {least}')


def _at(cfg: Config, dotted: str) -> object:
    """The value at a dotted key, None where there is none."""
    node = cfg
    for name in dotted.split('.'):
        if isinstance(node, (list, tuple)):
            node = node[int(name)] if name.isdigit() and int(name) < len(node) else None
        else:
            node = node.get(name) if isinstance(node, (dict, Config)) else None
    return node


def build_runner(cfg: Config) -> Runner:
    """The runner that the config names; what it refuses is the config's fault, in one line."""
    try:
        if 'runner_type' in cfg:
            return RUNNERS.build(cfg)
        return PortableRunner.from_cfg(cfg)
    except (ValueError, TypeError, KeyError, AssertionError, ImportError, OSError) as error:
        raise UserError(f'{cfg.filename}: cannot be built: {one_line(error)}') from error
