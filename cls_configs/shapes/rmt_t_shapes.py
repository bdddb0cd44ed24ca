"""RMT-T on crops of the built-in shapes, from scratch, at a size for two cores."""

_base_ = [
    '../_base_/classifier.py',
    '../_base_/default_runtime.py',
    '../../backbone/_base_/rmt_t.py',
]
custom_imports = dict(imports=['rmt_downstream', 'backbone.engine', 'backbone.folders'])

data_root = 'data/shapes_crops'  # made by `make demo-cls`: tools/quickstart.py says how
num_classes = 6  # five shapes, and what shows none of them whole
size = 64
norm_cfg = dict(type='BN')  # no GPU: no SyncBN

model = dict(
    data_preprocessor=dict(
        num_classes=num_classes,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    # Some hundred iterations: regularising costs more than it gives.
    backbone=dict(_base_.backbone, norm_cfg=norm_cfg, drop_path_rate=0.0),
    neck=dict(in_channels=_base_.channels[-1], norm_cfg=norm_cfg),
    head=dict(num_classes=num_classes),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    # the box and a quarter of it on each side, moved and scaled by a tenth; a crop has 1.8 of it
    dict(
        type='RandomResizedCrop',
        scale=size,
        crop_ratio_range=(0.56, 0.84),
        aspect_ratio_range=(0.95, 1.05),
    ),
    # hues alone would tell the shapes apart, and one size is not what a detector sees
    dict(type='RandomGrayscale', prob=0.25, keep_channels=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoiceResize', scales=[(s, s) for s in (20, 28, 40, size)], keep_ratio=False),
    dict(type='Pad', size=(size, size), padding_mode='reflect'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(round(1.2 * size),) * 2),
    dict(type='CenterCrop', crop_size=size),
    dict(type='PackInputs'),
]
# Loading a crop takes a hundredth of a step: a worker would only take time from the training.
loader = dict(batch_size=32, num_workers=0, persistent_workers=False)
data = dict(type='ClassFolders', data_root=data_root)
train_dataloader = dict(
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(split='train', pipeline=train_pipeline, **data),
    **loader,
)
val_dataloader = dict(
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(split='val', pipeline=test_pipeline, **data),
    **loader,
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=1)
test_evaluator = val_evaluator

max_iters = 600
warmup = 30
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 3)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper',
    # At half this rate accuracy is as high, but detectors start no better. `fused` is PyTorch's
    # one-kernel step.
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=5.0),
)
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
        by_epoch=False,
        interval=max_iters,
        save_optimizer=False,
        save_param_scheduler=False,
        save_best=None,
    ),
)
log_processor = dict(by_epoch=False, window_size=20)
randomness = dict(seed=0)
