"""The keys of :mod:`backbone.engine.keys` through every door of the ecosystem.

``Config.fromfile``, ``cfg.merge_from_dict`` and ``Runner.from_cfg`` are what everybody's scripts
and the tools of mmdet and mmseg call. Importing this module makes them honour ``data_root`` and
``pretrained`` where a config's ``runner_type`` is ours; with other configs they do what they did.
"""

import copy
import functools
from inspect import isclass
from typing import Any

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .keys import apply_keys
from .runner import RMTRunner


def runner_of(cfg: Config | dict) -> type[RMTRunner] | None:
    """The runner that ``cfg`` names where it is ours or made from ours."""
    # the raw value and no search in registries: nothing is imported for somebody else's config
    named = dict.get(cfg._cfg_dict if isinstance(cfg, Config) else cfg, 'runner_type')
    if isclass(named):
        kind = named
    else:
        name = str(named).split('.')[-1]
        registries = (RUNNERS, *RUNNERS.children.values())
        kind = next((r.module_dict[name] for r in registries if name in r.module_dict), None)
    return kind if isclass(kind) and issubclass(kind, RMTRunner) else None


_config_init = Config.__init__
_merge_from_dict = Config.merge_from_dict
_runner_from_cfg = Runner.from_cfg.__func__


@functools.wraps(_config_init)
def _init(self: Config, *args: Any, **kwargs: Any) -> None:
    _config_init(self, *args, **kwargs)
    if runner_of(self):
        apply_keys(self)


@functools.wraps(_merge_from_dict)
def _merge(self: Config, *args: Any, **kwargs: Any) -> None:
    _merge_from_dict(self, *args, **kwargs)
    if runner_of(self):
        apply_keys(self)


@functools.wraps(_runner_from_cfg)
def _from_cfg(cls: type[Runner], cfg: Config | dict) -> Runner:
    kind = runner_of(cfg)
    if kind and cls is Runner:
        return kind.from_cfg(cfg)
    if kind and not issubclass(cls, RMTRunner):  # somebody's own runner: the keys alone
        cfg = apply_keys(copy.deepcopy(cfg))
    return _runner_from_cfg(cls, cfg)


Config.__init__ = _init
Config.merge_from_dict = _merge
Runner.from_cfg = classmethod(_from_cfg)
