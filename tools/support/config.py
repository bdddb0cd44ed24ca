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

from backbone.engine import ConfigError, PortableRunner, apply_keys
from support.cli import UserError, local_rank, one_line
from support.options import merge
from support.paths import ROOT

NEAR = 0.8
"""How alike the name of a config must be to one that there is, from 0 to 1, to be taken for it."""

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
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank or local_rank()))
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
    try:
        return apply_keys(cfg)
    except ValueError as error:
        raise UserError(f'{path}: {one_line(error)}') from error


def find_config(name: str) -> str:
    """Path of a config file given by the user; where there is none, names what is near."""
    for path in (Path(name), ROOT / name):
        if path.is_file():
            return str(path)
    where = f'{name}: no such config file (from {os.getcwd()})'
    ours = {
        p.stem: str(p.relative_to(ROOT))
        for p in ROOT.glob('*_configs/**/*.py')
        if '_base_' not in p.parts
    }
    folder = Path(name).parent
    beside = {p.stem: str(p) for p in folder.glob('*.py')} if folder != Path(name) else {}
    stem = Path(name).name.removesuffix('.py')
    if near := difflib.get_close_matches(stem, [*beside, *ours], 1, NEAR):
        raise UserError(f'{where}; did you mean {beside.get(near[0]) or ours[near[0]]}?')
    inside = sorted(beside.values() or (p for p in ours.values() if Path(p).parent == folder))
    if inside:
        raise UserError(f'{where}; {folder} holds {", ".join(Path(p).name for p in inside)}')
    raise UserError(f'{where}; the configs are in cls_configs/, det_configs/, seg_configs/')


def check_work_dir(cfg: Config) -> None:
    """Refuse a work directory that cannot be made or written to, and make nothing yet."""
    wanted = place = Path(cfg.work_dir).expanduser().absolute()
    while not place.exists() and not place.is_symlink():
        place = place.parent
    if not place.is_dir():
        raise UserError(f'work_dir {wanted}: {place} is no directory; name another by --work-dir')
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f'work_dir {wanted}: {place} cannot be written; name another by --work-dir')


def build_runner(cfg: Config) -> Runner:
    """The runner that the config names; what it refuses is the config's fault, in one line."""
    try:
        if 'runner_type' in cfg:
            return RUNNERS.build(cfg)
        return PortableRunner.from_cfg(cfg)
    except ConfigError as error:
        raise UserError(f'{cfg.filename}: {one_line(error)}') from error
    except OSError as error:
        if error.filename and Path(error.filename).is_relative_to(Path(cfg.work_dir).absolute()):
            raise UserError(f'work_dir {cfg.work_dir}: {one_line(error)}') from error
        raise UserError(f'{cfg.filename}: cannot be built: {one_line(error)}') from error
    except (ValueError, TypeError, KeyError, AssertionError, ImportError) as error:
        raise UserError(f'{cfg.filename}: cannot be built: {one_line(error)}') from error
