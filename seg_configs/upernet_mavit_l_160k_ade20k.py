"""UperNet with MAViT-L on ADE20K, 160,000 iterations."""

_base_ = ['./_base_/upernet_160k.py', '../backbone/_base_/mavit_l.py']

model = dict(
    backbone=_base_.backbone,
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)
# as released, with 6e-5 all the same: taken as of 16 GPUs, an inference
train_dataloader = dict(batch_size=1)
