"""UperNet with narrow heads, for small images on a CPU."""

_base_ = './upernet_160k.py'

model = dict(decode_head=dict(channels=128), auxiliary_head=dict(channels=64))
