"""DINO with RMT-B on COCO, 12 epochs, four scales. Ours: no paper has it."""

_base_ = ['./_base_/dino_12e.py', '../backbone/_base_/rmt_b.py']

model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels[1:]))
