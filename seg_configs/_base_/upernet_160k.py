"""UperNet, 160,000 iterations of 8 GPUs × 2 = 16 images in float16; a leaf adds the variant."""

_base_ = ['./segmentor.py', './ade20k.py', './default_runtime.py']

model = dict(
    decode_head=dict(
        type='UPerHead',
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
        loss_decode=dict(loss_weight=1.0, **_base_.cross_entropy),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
        loss_decode=dict(loss_weight=0.4, **_base_.cross_entropy),
    ),
)

optim_wrapper = dict(
    type='AmpWhereAvailable',
    dtype='float16',
    loss_scale=512.0,
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    # by name as released: every LayerNorm and the downsamples' BN, but not the stem's BN
    paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0)}),
)
auto_scale_lr = dict(enable=True, base_batch_size=16)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    # the floor is set: mmseg's own schedules stop at 1e-4, above where this one starts
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=1500, end=160000, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
default_hooks = dict(checkpoint=dict(interval=16000))
