"""mmpretrain's runtime; keeps the last checkpoints, and the one of the best accuracy."""

_base_ = 'mmpretrain::_base_/default_runtime.py'

default_hooks = dict(
    logger=dict(type='MainProcessLoggerHook'),
    checkpoint=dict(
        type='WholeCheckpointHook', max_keep_ckpts=3, save_best='accuracy/top1', rule='greater'
    ),
)
