"""Mask2Former with RMT-S on COCO, 50 epochs, instances. Ours: no paper has it."""

_base_ = ['./_base_/mask2former_50e.py', '../backbone/_base_/rmt_s.py']

model = dict(backbone=_base_.backbone, panoptic_head=dict(in_channels=_base_.channels))
