"""Cascade Mask R-CNN with convolutional box heads, 36 epochs with multi-scale crops."""

_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    './coco_multiscale_crop.py',
    './adamw_3x.py',
    './default_runtime.py',
]

box_heads = [
    dict(
        type='ConvFCBBoxHead',
        num_shared_convs=4,
        num_shared_fcs=1,
        in_channels=256,
        conv_out_channels=256,
        fc_out_channels=1024,
        roi_feat_size=7,
        num_classes=80,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        reg_class_agnostic=False,
        reg_decoded_bbox=True,
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=target_stds
        ),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
    )
    for target_stds in (
        [0.1, 0.1, 0.2, 0.2],
        [0.05, 0.05, 0.1, 0.1],
        [0.033, 0.033, 0.067, 0.067],
    )
]
model = dict(backbone=dict(_delete_=True), roi_head=dict(bbox_head=box_heads))
# every norm layer, also the stem's and the heads', which the names leave out
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
