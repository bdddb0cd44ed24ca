"""Cascade Mask R-CNN with MAViT-B on COCO, 36 epochs, multi-scale crops."""

_base_ = ['./_base_/cascade_mask_rcnn_3x.py', '../backbone/_base_/mavit_b.py']

model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels))
