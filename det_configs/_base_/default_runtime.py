"""mmdet's runtime with hooks of ours."""

_base_ = ['mmdet::_base_/default_runtime.py', './own_hooks.py']

default_hooks = _base_.own_hooks
