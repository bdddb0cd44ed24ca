"""ATSS, 12 epochs; a leaf adds the variant. mmdet's config with the optimizer of Mask R-CNN 1x.

Not of the paper.
"""

_base_ = ['mmdet::atss/atss_r50_fpn_1x_coco.py', './adamw.py', './own_hooks.py']

# The pyramid starts at stage 2. Stage 1's output norm would be an unused parameter: not built.
model = dict(backbone=dict(_delete_=True, out_indices=(1, 2, 3)), neck=dict(start_level=0))
optim_wrapper = dict(_delete_=True, **_base_.adamw)
auto_scale_lr = dict(enable=True, base_batch_size=16)
default_hooks = _base_.own_hooks
