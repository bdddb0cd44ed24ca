"""RTMDet-L with RMT-S on COCO, 100 epochs. Ours: no paper has it."""

_base_ = ['./_base_/rtmdet_100e.py', '../backbone/_base_/rmt_s.py']

model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels[1:]))
