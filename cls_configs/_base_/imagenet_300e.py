"""ImageNet-1k at 224 x 224 by the released recipe; a leaf adds the variant.

RandAugment and erasing stand in mmpretrain's base, as they do for Swin.
"""

_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    './classifier.py',
    './adamw_300e.py',
    './default_runtime.py',
]

data_root = 'data/imagenet'
model = dict(
    # the tools build the model alone, so the pixels' scale belongs to it
    data_preprocessor=_base_.data_preprocessor,
    head=dict(num_classes=1000),
    # one of the two for each batch, as likely as the other
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
train_dataloader = dict(
    batch_size=256,
    num_workers=10,
    persistent_workers=True,
    # each image three times in a row, which go to different GPUs; an epoch is a third of that
    sampler=dict(type='RepeatAugSampler', num_repeats=3),
)
val_dataloader = dict(persistent_workers=True)
test_dataloader = val_dataloader
