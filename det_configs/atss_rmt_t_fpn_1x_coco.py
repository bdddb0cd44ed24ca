"""ATSS with RMT-T on COCO, 12 epochs. Ours: no paper has it."""

_base_ = ['./_base_/atss_1x.py', '../backbone/_base_/rmt_t.py']

model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels[1:]))
