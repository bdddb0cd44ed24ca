"""Semantic FPN with RMT-T from scratch on the built-in shapes, at a size for two cores."""

_base_ = ['../_base_/fpn_narrow.py', '../../backbone/_base_/rmt_t.py']

data_root = 'data/shapes_ade'  # made by tools/shapes_dataset.py --ade
classes = ('ground', 'disc', 'square', 'triangle', 'star', 'cross')
palette = [(120, 120, 120), (230, 60, 60), (240, 220, 40)]
palette += [(40, 220, 90), (60, 120, 255), (230, 80, 230)]
size = (144, 192)  # height and width of a scene at three quarters
norm_cfg = dict(type='BN', requires_grad=True)  # no GPU: no SyncBN

model = dict(
    data_preprocessor=dict(size=size),
    # Some hundred iterations: regularising costs more than it gives.
    backbone=dict(_base_.backbone, norm_cfg=norm_cfg, drop_path_rate=0.0),
    neck=dict(in_channels=_base_.channels),
    decode_head=dict(num_classes=len(classes), norm_cfg=norm_cfg),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='Resize', scale=size[::-1]),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size[::-1]),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
# Loading an image takes a hundredth of a step: a worker would only take time from the training.
loader = dict(num_workers=0, persistent_workers=False)
dataset = dict(
    type='BaseSegDataset',  # ADE20KDataset takes no classes but its own
    img_suffix='.jpg',
    seg_map_suffix='.png',
    reduce_zero_label=True,
    metainfo=dict(
        classes=classes,
        palette=palette,
    ),
)
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline, **dataset), **loader)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **dataset), **loader)
test_dataloader = val_dataloader

max_iters = 300
warmup = 30
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 3)
optim_wrapper = dict(
    # `fused` is PyTorch's one-kernel step; the usual loop over 380 tensors takes 0.1 s an iteration
    optimizer=dict(lr=1e-3, weight_decay=0.05, fused=True),
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
    logger=dict(interval=10),
    checkpoint=dict(
        interval=max_iters, save_optimizer=False, save_param_scheduler=False, save_best=None
    ),
)
log_processor = dict(window_size=20)
randomness = dict(seed=0)
