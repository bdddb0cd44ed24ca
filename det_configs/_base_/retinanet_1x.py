"""RetinaNet, 12 epochs; a leaf adds the variant and gives the neck the widths of stages 2 to 4."""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    './adamw_1x.py',
    './default_runtime.py',
]

model = dict(
    # The pyramid starts at stage 2. Stage 1's output norm would be an unused parameter: not built.
    backbone=dict(_delete_=True, out_indices=(1, 2, 3)),
    neck=dict(start_level=0, add_extra_convs='on_input', num_outs=5),
)
optim_wrapper = dict(
    loss_scale=512.0,  # fixed, as released; the other detectors' is dynamic
    optimizer=dict(weight_decay=1e-4),
    paramwise_cfg=dict(_delete_=True),  # nothing is exempt
)
