"""COCO with DETR's augmentation: resize at random, or resize, crop and resize again."""

_base_ = 'mmdet::_base_/datasets/coco_instance.py'

resize = dict(
    type='RandomChoiceResize',
    scales=[(short, 1333) for short in range(480, 801, 32)],
    keep_ratio=True,
)
resize_before_crop = dict(
    type='RandomChoiceResize',
    scales=[(short, 1333) for short in (400, 500, 600)],
    keep_ratio=True,
)
crop = dict(
    type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True
)
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[[resize], [resize_before_crop, crop, resize]]),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
