"""The model of two-stage detectors at a size for two cores: a quarter as wide, fewer proposals."""

narrow = dict(
    # images are padded to a multiple of it; there is no level behind stride 32
    data_preprocessor=dict(pad_size_divisor=16),
    neck=dict(out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),  # 16, 32, 64, 128 pixels
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            # One sample a bin: on a CPU the adaptive number takes a quarter of a training step.
            roi_layer=dict(sampling_ratio=1),
            out_channels=64,
            featmap_strides=[4, 8, 16, 32],
            finest_scale=28,  # levels change at 56, 112, 224 pixels: half the usual, as images are
        ),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=300, max_per_img=150),
        rcnn=dict(sampler=dict(num=64, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=30)),
)
