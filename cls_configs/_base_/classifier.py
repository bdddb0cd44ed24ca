"""RMT as a classifier: the last stage as it is, a projection and its mean, a linear layer."""

model = dict(
    type='ImageClassifier',
    backbone=dict(out_indices=(3,), output_norms=False),
    neck=dict(type='ProjectionNeck', out_channels=1024, norm_cfg=dict(type='SyncBN')),
    head=dict(
        type='LinearClsHead',
        in_channels=1024,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)
