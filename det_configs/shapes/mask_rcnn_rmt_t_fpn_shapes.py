"""Mask R-CNN with RMT-T from scratch on the built-in shapes, at a size for two cores.

The backbone is the whole RMT-T; what is cut down is behind it, in `../_base_/narrow.py`.
"""

_base_ = ['../_base_/mask_rcnn_narrow.py', '../../backbone/_base_/rmt_t.py']

data_root = 'data/shapes'  # made by tools/shapes_dataset.py
classes = ('disc', 'square', 'triangle', 'star', 'cross')
palette = [(230, 60, 60), (240, 220, 40), (40, 220, 90), (60, 120, 255), (230, 80, 230)]
num_classes = len(classes)
image_scale = (192, 192)  # the longer side

model = dict(
    # Some hundred iterations: regularising costs more than it gives. No GPU: no SyncBN.
    backbone=dict(_base_.backbone, norm_cfg=dict(type='BN'), drop_path_rate=0.0),
    neck=dict(in_channels=_base_.channels),
    roi_head=dict(bbox_head=dict(num_classes=num_classes), mask_head=dict(num_classes=num_classes)),
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
