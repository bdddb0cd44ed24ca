"""Mask R-CNN with narrow heads, for small images on a CPU."""

_base_ = ['./mask_rcnn_1x.py', './narrow.py']

model = dict(
    data_preprocessor=_base_.narrow.data_preprocessor,
    neck=_base_.narrow.neck,
    rpn_head=_base_.narrow.rpn_head,
    roi_head=dict(
        bbox_roi_extractor=_base_.narrow.roi_extractor,
        bbox_head=_base_.narrow.bbox_head,
        mask_roi_extractor=_base_.narrow.roi_extractor,
        mask_head=_base_.narrow.mask_head,
    ),
    train_cfg=_base_.narrow.train_cfg,
    test_cfg=_base_.narrow.test_cfg,
)
