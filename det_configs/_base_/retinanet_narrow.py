"""RetinaNet with narrow heads, for small images on a CPU."""

_base_ = './retinanet_1x.py'

model = dict(
    neck=dict(out_channels=96),
    bbox_head=dict(
        in_channels=96,
        feat_channels=96,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=2),  # 16 pixels and up: half the usual
    ),
    test_cfg=dict(max_per_img=50),
)
