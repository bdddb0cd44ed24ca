"""RetinaNet with RAVLT-S on COCO, 12 epochs."""

_base_ = ['./_base_/retinanet_1x.py', '../backbone/_base_/ravlt_s.py']

model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels[1:]))
