"""Semantic FPN, 80,000 iterations of 8 GPUs × 2 = 16 images in float32; a leaf adds the variant."""

_base_ = ['./segmentor.py', './ade20k.py', './default_runtime.py']

model = dict(
    neck=dict(type='FPN', out_channels=256, num_outs=4),
    decode_head=dict(
        type='FPNHead',
        in_channels=[256, 256, 256, 256],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=128,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
        loss_decode=dict(loss_weight=1.0, **_base_.cross_entropy),
    ),
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4),
)
auto_scale_lr = dict(enable=True, base_batch_size=16)
param_scheduler = [
    # the floor is set: mmseg's own schedules stop at 1e-4, where this one starts
    dict(type='PolyLR', power=0.9, eta_min=1e-6, begin=0, end=80000, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=80000, val_interval=8000)
default_hooks = dict(checkpoint=dict(interval=8000))
