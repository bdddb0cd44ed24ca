"""UperNet with RAVLT-S on ADE20K, 160,000 iterations."""

_base_ = ['./_base_/upernet_160k.py', '../backbone/_base_/ravlt_s.py']

model = dict(
    backbone=_base_.backbone,
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)
