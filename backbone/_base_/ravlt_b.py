"""RAVLT-B: `backbone` goes into `model.backbone`, `channels` tells necks and heads its widths."""

_base_ = './runtime.py'

from importlib import import_module  # noqa: E402  (an import above `_base_` makes another kind of config)

backbone = dict(type='RAVLT', arch='base', norm_cfg=dict(type='SyncBN'))
channels = list(import_module('backbone.ravlt').VARIANTS['base'].channels)
