"""DINO with RAVLT-S on COCO, 12 epochs, four scales. Ours: nobody has published it."""

_base_ = ['./_base_/dino_12e.py', '../backbone/_base_/ravlt_s.py']

model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels[1:]))
