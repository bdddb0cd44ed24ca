"""mmdet's runtime; keeps the last checkpoints only (one is 0.3 to 1.4 GB with its optimizer)."""

_base_ = 'mmdet::_base_/default_runtime.py'

default_hooks = dict(
    logger=dict(type='MainProcessLoggerHook'),
    checkpoint=dict(type='WholeCheckpointHook', max_keep_ckpts=3),
)
