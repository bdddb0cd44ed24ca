"""DINO with four scales, 12 epochs; a leaf adds the variant. Not of the paper.

mmdet's config with the optimizer of TransNeXt's: more decay, but none on norms and biases. In
float32, as mmdet has it: float16 would round the places at which deformable attention looks, to
pixels in an image of 1,333.
"""

_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../../backbone/_base_/slow_backbone.py',
    './own_hooks.py',
]

# Stages 2 to 4, and a level made of the last. Stage 1's output norm would be an unused parameter:
# not built.
model = dict(backbone=dict(_delete_=True, out_indices=(1, 2, 3)))
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={
            'in_proj_bias': dict(decay_mult=0.0),  # of attention: not called `bias` alone
            **_base_.slow_backbone,
            **_base_.no_decay_on_biases,
        },
    ),
)
auto_scale_lr = dict(enable=True)
default_hooks = _base_.own_hooks
