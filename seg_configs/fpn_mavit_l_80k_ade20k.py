"""Semantic FPN with MAViT-L on ADE20K, 80,000 iterations."""

_base_ = ['./_base_/fpn_80k.py', '../backbone/_base_/mavit_l.py']

model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels))
