"""RMT-T on images of your own, a folder a class: PHOTOS/CLASS/*.jpg, or PHOTOS/train/CLASS and val.

    python tools/train.py cls_configs/rmt_t_folder.py --cfg-options data_root=PHOTOS num_classes=3

A share of what has no split is set aside to judge by. Best begun with ImageNet weights
(`pretrained=FILE`). Of no paper; not run.
"""

_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    './_base_/classifier.py',
    './_base_/adamw_300e.py',
    './_base_/default_runtime.py',
    '../backbone/_base_/rmt_t.py',
]
custom_imports = dict(imports=['rmt_downstream', 'backbone.engine', 'backbone.folders'])

data_root = 'data/folders'
num_classes = 2  # how many folders there are; their names are found
max_epochs = 50
warm_up = 5

model = dict(
    data_preprocessor=dict(_base_.data_preprocessor, num_classes=num_classes),
    backbone=_base_.backbone,
    neck=dict(in_channels=_base_.channels[-1]),
    head=dict(num_classes=num_classes),
)

data = dict(type='ClassFolders', data_root=data_root)
train_dataloader = dict(
    batch_size=32, num_workers=2, persistent_workers=True, dataset=dict(split='train', **data)
)
val_dataloader = dict(
    batch_size=32, num_workers=2, persistent_workers=True, dataset=dict(split='val', **data)
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=1)  # there may be two classes
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=2e-4), clip_grad=dict(max_norm=5.0))
auto_scale_lr = dict(base_batch_size=32)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=warm_up + 1),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-2,
        begin=warm_up,
        end=max_epochs,
        T_max=max_epochs - warm_up,
    ),
]
custom_hooks = []  # too few steps to average over
