"""RMT-T on CIFAR-10, 200 epochs from random weights. Of no paper; not run.

The data downloads itself into `data_root` where there is a network.
"""

_base_ = [
    'mmpretrain::_base_/datasets/cifar10_bs16.py',
    './_base_/classifier.py',
    './_base_/adamw_300e.py',
    './_base_/default_runtime.py',
    '../backbone/_base_/rmt_t.py',
]

data_root = 'data/cifar10'
size = 64  # the stem has stride 4: of 32 x 32 pixels the last stage would see one place
max_epochs = 200
warm_up = 10

model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=_base_.backbone,
    neck=dict(in_channels=_base_.channels[-1]),
    head=dict(num_classes=10),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)

resize = dict(type='Resize', scale=(size, size), backend='pillow', interpolation='bicubic')
train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    resize,
    dict(type='PackInputs'),
]
test_pipeline = [resize, dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=128, persistent_workers=True, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=128,
    persistent_workers=True,
    dataset=dict(pipeline=test_pipeline, split='test'),
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, 5))
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=5.0))
auto_scale_lr = dict(base_batch_size=128)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=warm_up + 1),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-2,
        begin=warm_up,
        end=max_epochs,
        T_max=max_epochs - warm_up,
    ),
]
custom_hooks = [
    # over about five epochs of 390 steps
    dict(type='BatchEMAHook', momentum=5e-4, base_batch_size=128, update_buffers=True)
]
