"""Mask R-CNN with MAViT-B on COCO, 12 epochs."""

_base_ = ['./_base_/mask_rcnn_1x.py', '../backbone/_base_/mavit_b.py']

model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels))
