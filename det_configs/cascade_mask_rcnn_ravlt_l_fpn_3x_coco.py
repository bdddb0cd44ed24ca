"""Cascade Mask R-CNN with RAVLT-L on COCO, 36 epochs, multi-scale crops."""

_base_ = ['./_base_/cascade_mask_rcnn_3x.py', '../backbone/_base_/ravlt_l.py']

model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels))
