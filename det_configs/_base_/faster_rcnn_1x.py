"""Faster R-CNN, 12 epochs: the recipe of Mask R-CNN for data without masks. Not of the paper."""

_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    './adamw_1x.py',
    './default_runtime.py',
]

model = dict(backbone=dict(_delete_=True))
