"""What the tools share: arguments, reading a config, building a runner, and saying what is wrong.

A mistake of the user's ends in one line on stderr and exit status 2; ``RMT_TRACEBACK=1`` shows the
traceback as well. In a distributed run one process of each machine speaks.
"""

import argparse
import difflib
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mmengine.config import Config, DictAction
from mmengine.config import utils as config_utils
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from backbone.engine import PortableRunner, apply_keys
from backbone.weights.match import CheckpointError
from support.paths import ROOT

# for each `mmdet::` base mmengine reads all of mmdet's 100 metafiles again: a second a config
config_utils.load = functools.cache(config_utils.load)

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


class UserError(Exception):
    """A mistake of the user's; the message is one line: what is wrong, where, what to do."""


def one_line(error: object) -> str:
    """The text of an error without line breaks."""
    # str(KeyError) is the repr of its argument
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return ' '.join(str(text).split())


def fail(message: str, every_process: bool = False) -> NoReturn:
    """End with one line on stderr and exit status 2."""
    if every_process or os.environ.get('LOCAL_RANK', '0') == '0':
        print(f'error: {message}', file=sys.stderr, flush=True)
    sys.exit(2)


def run(main: Callable[[], None]) -> None:
    """Run a tool's ``main``; what a user can put right ends in one line."""
    try:
        main()
    except (UserError, CheckpointError) as error:
        _show_traceback()
        fail(one_line(error))
    except KeyboardInterrupt:
        fail('interrupted; training goes on from its last checkpoint with --resume')
    except Exception as error:
        message = _unreadable_file(error)
        if message is None:
            raise
        _show_traceback()
        fail(message, every_process=True)


def _show_traceback() -> None:
    if os.environ.get('RMT_TRACEBACK') == '1':
        traceback.print_exc()


def _unreadable_file(error: Exception) -> str | None:
    """The line for a data file that failed to load, in this process or in a dataloader's worker.

    A worker's error arrives as the same type with the worker's traceback as its text.
    """
    if found := re.search(r'(?:^|Error: )failed to load image: (.+)', str(error)):
        return f'{found[1].strip()}: no image that can be decoded; replace it, or leave it out'
    if found := re.search(r"No such file or directory: '(.+?)'", str(error)):
        return f'{found[1]}: no such file'
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every tool around a runner has."""
    parser.add_argument('--work-dir', help='for logs and checkpoints (work_dirs/CONFIG)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='change the config, e.g. data_root=/data/coco train_dataloader.batch_size=4',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch passes it, torchrun sets the environment variable
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


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
        cfg = Config.fromfile(path)
    except Exception as error:
        reason = f'{type(error).__name__}: {one_line(error)}'
        raise UserError(f'{path}: not a config: {reason}') from error
    _merge(cfg, options)
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


def _merge(cfg: Config, options: dict) -> None:
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


def existing_file(path: str, what: str) -> str:
    """``path`` where it is a file."""
    if not os.path.isfile(path):
        kind = 'is a directory' if os.path.isdir(path) else 'no such file'
        raise UserError(f'{what} {path}: {kind} (from {os.getcwd()})')
    return path


def build_runner(cfg: Config) -> Runner:
    """The runner that the config names; what it refuses is the config's fault, in one line."""
    try:
        if 'runner_type' in cfg:
            return RUNNERS.build(cfg)
        return PortableRunner.from_cfg(cfg)
    except (ValueError, TypeError, KeyError, AssertionError, ImportError, OSError) as error:
        raise UserError(f'{cfg.filename}: cannot be built: {one_line(error)}') from error
