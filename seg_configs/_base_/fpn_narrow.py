"""Semantic FPN with a narrow head, for small images on a CPU."""

_base_ = './fpn_80k.py'

model = dict(
    neck=dict(out_channels=64),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=64),
)
