"""What both segmentors share: encoder and decoder over whole images, and the pixels' scale."""

norm_cfg = dict(type='SyncBN', requires_grad=True)
cross_entropy = dict(type='CrossEntropyLoss', use_sigmoid=False)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),  # of a training batch; a crop of a smaller image is padded to it
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
