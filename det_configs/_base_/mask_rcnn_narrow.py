"""Mask R-CNN with narrow heads, for small images on a CPU."""

_base_ = ['./mask_rcnn_1x.py', './narrow.py']

model = dict(
    _base_.narrow,
    roi_head=dict(
        _base_.narrow.roi_head,
        mask_roi_extractor=_base_.narrow.roi_head.bbox_roi_extractor,
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64),
    ),
)
