"""Mask2Former with RMT-B on ADE20K, 160,000 iterations. Ours: no paper has it."""

_base_ = ['./_base_/mask2former_160k.py', '../backbone/_base_/rmt_b.py']

model = dict(backbone=_base_.backbone, decode_head=dict(in_channels=_base_.channels))
