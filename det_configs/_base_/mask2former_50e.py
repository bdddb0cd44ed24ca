"""Mask2Former for instances, 50 epochs with large-scale jittering; a leaf adds the variant.

mmdet's config for Swin-T, whose backbone's norms do not decay, with ours. Not of the paper. In
float32, as mmdet has it (see dino_12e.py).
"""

_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    '../../backbone/_base_/slow_backbone.py',
    './own_hooks.py',
]

num_classes = 80
applied_keys = dict(num_classes=num_classes)  # another number goes to the heads and their weights
model = dict(backbone=dict(_delete_=True))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_backbone))
auto_scale_lr = dict(enable=True)
default_hooks = _base_.own_hooks
