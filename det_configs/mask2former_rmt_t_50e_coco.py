"""Mask2Former with RMT-T on COCO, 50 epochs, instances. Ours: no paper has it."""

_base_ = ['./_base_/mask2former_50e.py', '../backbone/_base_/rmt_t.py']

model = dict(backbone=_base_.backbone, panoptic_head=dict(in_channels=_base_.channels))
