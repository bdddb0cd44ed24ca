"""Faster R-CNN with narrow heads, for small images on a CPU."""

_base_ = ['./faster_rcnn_1x.py', './narrow.py']

model = dict(_base_.narrow)
