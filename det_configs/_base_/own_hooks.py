"""`own_hooks`: the logger and the keeper of checkpoints that every detector here has.

A checkpoint is 0.3 to 1.4 GB with its optimizer, so the last ones alone are kept.
"""

own_hooks = dict(
    logger=dict(type='MainProcessLoggerHook'),
    checkpoint=dict(type='WholeCheckpointHook', max_keep_ckpts=3),
)
