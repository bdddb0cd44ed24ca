"""Top-level keys of the configs here, which no config can do alone.

A config is evaluated before ``--cfg-options`` are merged, so a changed ``data_root`` would reach
none of the paths made from it. :func:`apply_keys` carries the keys on:

- ``data_root=DIR``: in dataloaders and evaluators, every path below the default root moves there;
  a path that somebody has set to something else stays.
- ``pretrained=FILE``: ImageNet weights for every backbone of ours in the model, loaded completely
  or refused.
- ``num_classes=N``: of a classifier, to its head and to what mixes its labels; of the Mask2Former
  configs here, to its heads and to the weights of the classes.

What was carried on stands in the config afterwards, as ``applied_keys``. So the keys may be applied
by the config, the tool and the runner, again when a dumped config is used again, and with another
value each time: paths move from where they lie now, and only if that is elsewhere.
:mod:`backbone.engine.entry` says when it is called.
"""

import os
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from torch import nn

from ..weights.families import FAMILIES

DEFAULT_ROOTS = ('data/coco', 'data/ade/ADEChallengeData2016')
"""Where the base configs look for the data, relative to the working directory."""

APPLIED = 'applied_keys'

_PATHS = ('data_root', 'pretrained', 'load_from')
_WITH_PATHS = ('dataloader', 'evaluator')
_BACKBONES = {family.name for family in FAMILIES}


def apply_keys(cfg: Config) -> Config:
    """Carry the keys of ``cfg`` to the places they stand for, in place.

    Raises:
        ValueError: a key is no path, or the model has no place for ``pretrained``.
    """
    for key in _PATHS:
        if cfg.get(key) is not None:
            text = _path_text(key, cfg[key])
            if text != cfg[key]:
                cfg[key] = text
    applied = dict(cfg.get(APPLIED) or {})
    before = dict(applied)
    _apply_root(cfg, applied)
    if cfg.get('model'):
        _apply_pretrained(cfg, applied)
        _apply_num_classes(cfg, applied)
    if applied != before:
        cfg[APPLIED] = ConfigDict(applied)
    return cfg


def _path_text(key: str, value: object) -> str:
    """A path as text with ``~`` expanded; `data_root=2024` on a command line may be a number."""
    if isinstance(value, (list, tuple, dict, bool)):
        raise ValueError(
            f'{key}={value}: must be one path (mmengine splits --cfg-options at commas: where a '
            "path has one, give it in a config, or use this project's tools)"
        )
    return os.path.expanduser(str(value))


def _apply_root(cfg: Config, applied: dict[str, Any]) -> None:
    root = cfg.get('data_root')
    if not root or root == applied.get('data_root'):
        return
    sources = (applied['data_root'],) if 'data_root' in applied else DEFAULT_ROOTS
    for split in ('train', 'val', 'test'):
        for name in _WITH_PATHS:
            key = f'{split}_{name}'
            if cfg.get(key):
                cfg[key] = _moved(cfg[key], sources, root)
    if root.rstrip('/') in DEFAULT_ROOTS:
        applied.pop('data_root', None)
    else:
        applied['data_root'] = root


def _moved(node, sources: tuple[str, ...], root: str):
    """Copy of a config value in which paths at or below a source lie at or below ``root``."""
    if isinstance(node, dict):  # dict.items: a lazy import of a pure-Python config stays lazy
        return ConfigDict({k: _moved(value, sources, root) for k, value in dict.items(node)})
    if isinstance(node, (list, tuple)):
        return type(node)(_moved(value, sources, root) for value in node)
    if isinstance(node, str):
        for source in sources:
            # moved by an earlier release, without a record: `data/coco/mini` is below the source
            is_there = _is_below(root, source) and _is_below(node, root)
            if _is_below(node, source) and not is_there:
                return (root.rstrip('/') + node[len(source.rstrip('/')) :]) or '/'
    return node


def _is_below(path: str, root: str) -> bool:
    root = root.rstrip('/')
    return path.rstrip('/') == root or path.startswith(f'{root}/')


def _apply_pretrained(cfg: Config, applied: dict[str, Any]) -> None:
    file, before = cfg.get('pretrained'), applied.pop('pretrained', None)
    if not (file or before):
        return
    found = list(backbones(cfg['model']))
    if not found and isinstance(cfg['model'].get('backbone'), dict):
        found = [cfg['model']['backbone']]  # somebody else's, with our runner
    if not found:
        raise ValueError(f'pretrained={file or before}: the model has no backbone to load it into')
    for backbone in found:
        old = backbone.get('init_cfg')
        of_file = isinstance(old, dict) and old.get('type', 'Pretrained') == 'Pretrained'
        if file:  # `key`, which names averaged weights in a file, stays
            kept = old if of_file else {}
            backbone['init_cfg'] = ConfigDict({**kept, 'type': 'Pretrained', 'checkpoint': file})
        elif of_file and old.get('checkpoint') == before:
            backbone['init_cfg'] = None
    if file:
        applied['pretrained'] = file


def _apply_num_classes(cfg: Config, applied: dict[str, Any]) -> None:
    number, model = cfg.get('num_classes'), cfg['model']
    head = model.get('head')
    classifies = isinstance(head, dict) and 'num_classes' in head
    # a base of ours says what stands in its heads; mmdet's have a variable of that name too
    if number is None or not (classifies or 'num_classes' in applied):
        return
    if type(number) is not int or number < 1:
        raise ValueError(f'num_classes={number}: must be a whole number of at least 1')
    if number == applied.get('num_classes'):
        return
    places = ('head', 'data_preprocessor') if classifies else _MASK2FORMER
    for part in (model.get(place) for place in places):
        for key in ('num_classes', 'num_things_classes'):
            if isinstance(part, dict) and key in part:
                part[key] = number
        if isinstance(part, dict) and 'class_weight' in part.get('loss_cls', {}):
            first, *_, nothing = part['loss_cls']['class_weight']
            part['loss_cls']['class_weight'] = [first] * number + [nothing]
    applied['num_classes'] = number


_MASK2FORMER = ('panoptic_head', 'panoptic_fusion_head', 'decode_head')


def backbones(node: object) -> Iterator[dict]:
    """The parts of a model's config that build a backbone of ours, wherever they stand.

    In a detector at ``backbone``, in a semi-supervised wrapper at ``detector.backbone``.
    """
    if isinstance(node, dict):
        kind = dict.get(node, 'type', '')
        name = kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
        if name.split('.')[-1] in _BACKBONES:
            yield node
        for value in dict.values(node):
            yield from backbones(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from backbones(value)


def lacks_weights(model: nn.Module) -> bool:
    """Whether ``model`` holds a backbone of ours that no file is going to fill."""
    kinds = tuple(MODELS.module_dict[name] for name in _BACKBONES)
    return any(isinstance(m, kinds) and not m.init_cfg for m in model.modules())
