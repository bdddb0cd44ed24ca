"""`adamw`: the optimizer of the released detectors, in float16 with a dynamic loss scale."""

adamw = dict(
    type='AmpWhereAvailable',
    dtype='float16',
    loss_scale='dynamic',
    # 1e-4 for every 16 images, scaled with the real batch: that gives RMT's and MAViT's released
    # 4e-4 at 64 images (32 GPUs × 2) and 2e-4 at 32, and RAVLT's 1e-4, in every config, at 16.
    # An inference: no release names a GPU count.
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    # by name as released: every LayerNorm and the downsamples' BN, but not the stem's BN
    paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0)}),
)
