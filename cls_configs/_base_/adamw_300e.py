"""300 epochs with AdamW in float16 at 2048 images a step, averaged weights, as released."""

max_epochs = 300
warm_up = 5
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()

rate = 2e-3
optim_wrapper = dict(
    type='AmpWhereAvailable',
    dtype='float16',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    # what has one dimension, which norms and biases have; layer scales, (1, 1, 1, C), decay
    paramwise_cfg=dict(flat_decay_mult=0.0),
)
auto_scale_lr = dict(enable=True, base_batch_size=2048)  # 8 GPUs × 256 images
# Changed once an epoch; the real batch scales all of it.
param_scheduler = [
    # 1e-6 in the first epoch, in equal steps, the whole rate in the sixth
    dict(type='LinearLR', start_factor=1e-6 / rate, begin=0, end=warm_up + 1),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-5 / rate,
        begin=warm_up,
        end=max_epochs,
        T_max=max_epochs - warm_up,
    ),
]
custom_hooks = [
    # a decay of 0.99984 a step of 2048 images, running statistics too
    dict(type='BatchEMAHook', momentum=1.6e-4, base_batch_size=2048, update_buffers=True)
]
