"""Mask R-CNN with RAVLT-L on COCO, 36 epochs, multi-scale crops."""

_base_ = ['./_base_/mask_rcnn_3x.py', '../backbone/_base_/ravlt_l.py']

model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels))
train_dataloader = dict(batch_size=1)  # as released: 1 image a GPU
