"""Semantic FPN with RAVLT-T on ADE20K, 80,000 iterations.

Released as weights and a result, without a config.
"""

_base_ = ['./_base_/fpn_80k.py', '../backbone/_base_/ravlt_t.py']

model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels))
