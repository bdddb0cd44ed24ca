"""Mask R-CNN, 36 epochs with multi-scale crops; a leaf adds the variant."""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    './coco_multiscale_crop.py',
    './adamw_3x.py',
    './default_runtime.py',
]

model = dict(backbone=dict(_delete_=True))
