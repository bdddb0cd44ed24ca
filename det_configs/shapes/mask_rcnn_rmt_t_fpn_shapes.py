"""Mask R-CNN with RMT-T from scratch on the built-in shapes, at a size for two cores.

The backbone is the whole RMT-T; what is cut down is behind it: widths, proposals, samples.
"""

_base_ = '../mask_rcnn_rmt_t_fpn_1x_coco.py'

data_root = 'data/shapes'  # made by tools/shapes_dataset.py
classes = ('disc', 'square', 'triangle', 'star', 'cross')
palette = [(230, 60, 60), (240, 220, 40), (40, 220, 90), (60, 120, 255), (230, 80, 230)]
num_classes = len(classes)
image_scale = (192, 192)  # the longer side
channels = 64
strides = [4, 8, 16, 32]

roi_extractor = dict(
    # One sample a bin: on a CPU the adaptive number takes a quarter of a training step.
    roi_layer=dict(sampling_ratio=1),
    out_channels=channels,
    featmap_strides=strides,
    finest_scale=28,  # levels change at sides of 56, 112, 224: half the usual, as the images are
)
model = dict(
    data_preprocessor=dict(pad_size_divisor=16),
    # Some hundred iterations: regularising costs more than it gives. No GPU: no SyncBN.
    backbone=dict(norm_cfg=dict(type='BN'), drop_path_rate=0.0),
    neck=dict(out_channels=channels, num_outs=4),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[4], strides=strides),  # 16, 32, 64, 128 pixels
    ),
    roi_head=dict(
        bbox_roi_extractor=roi_extractor,
        bbox_head=dict(in_channels=channels, fc_out_channels=256, num_classes=num_classes),
        mask_roi_extractor=roi_extractor,
        mask_head=dict(
            num_convs=2, in_channels=channels, conv_out_channels=channels, num_classes=num_classes
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=300, max_per_img=150),
        rcnn=dict(sampler=dict(num=64, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=30)),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
metainfo = dict(classes=classes, palette=palette)
# Loading an image takes a hundredth of a step: a worker would only take time from the training.
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=4,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(metainfo=metainfo, filter_cfg=dict(min_size=4), pipeline=train_pipeline),
    **loader,
)
val_dataloader = dict(dataset=dict(metainfo=metainfo, pipeline=test_pipeline), **loader)
test_dataloader = val_dataloader

max_iters = 330
warmup = 30
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 3
)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    # `fused` is PyTorch's one-kernel step; the usual loop over 380 tensors takes 0.1 s an iteration
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=5.0),
)
auto_scale_lr = dict(enable=False)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=warmup,
        end=max_iters,
        T_max=max_iters - warmup,
        eta_min_ratio=0.02,
    ),
]
default_hooks = dict(
    logger=dict(interval=10, log_metric_by_epoch=False),
    checkpoint=dict(
        by_epoch=False, interval=max_iters, save_optimizer=False, save_param_scheduler=False
    ),
)
log_processor = dict(by_epoch=False, window_size=20)
randomness = dict(seed=0)
