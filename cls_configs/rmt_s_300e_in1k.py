"""RMT-S on ImageNet-1k, 300 epochs."""

_base_ = ['./_base_/imagenet_300e.py', '../backbone/_base_/rmt_s.py']

model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels[-1]))
