"""RTMDet-L's neck and head, 100 epochs; a leaf adds the variant. Not of the paper.

mmdet's config for Swin-B, with ours.
"""

_base_ = ['mmdet::rtmdet/rtmdet_l_swin_b_4xb32-100e_coco.py', './own_hooks.py']

# Stage 1's output norm would be an unused parameter: not built.
model = dict(backbone=dict(_delete_=True, out_indices=(1, 2, 3)))
auto_scale_lr = dict(enable=True, base_batch_size=128)  # 4 GPUs × 32
default_hooks = _base_.own_hooks
