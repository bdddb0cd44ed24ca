"""DINO with RMT-T on COCO, 12 epochs, four scales. Ours: no paper has it."""

_base_ = ['./_base_/dino_12e.py', '../backbone/_base_/rmt_t.py']

model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels[1:]))
