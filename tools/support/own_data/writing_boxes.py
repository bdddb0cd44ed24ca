"""The parts of a detector's config that a segmentor's has otherwise."""

from support.own_data.pieces import Paths, backbone, comment, loader, metainfo
from support.own_data.recipe import Case, Recipe


def data(case: Case, chosen: Recipe, classes: list[str], paths: Paths) -> str:
    masks = ', with_mask=True' if case.head == 'mask_rcnn' else ''
    side = chosen['side']
    scale = (1333, 800) if side.value is None else (side.value, side.value)
    return f"""\
# --- data -----------------------------------------------------------------------------------------

data_root = {str(paths.root)!r}
{metainfo(classes)}
{comment(f'width and height at most; {side.why}')}
scale = {scale}

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True{masks}),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True{masks}),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
{loader(case)}
train_dataloader = dict(
    batch_size={chosen['batch'].value},  # {chosen['batch'].why}
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        ann_file={paths.annotations['train']!r},
        data_prefix=dict(img={paths.images['train']!r}),
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
    **loader,
)
val_dataloader = dict(
    dataset=dict(
        ann_file={paths.annotations['val']!r},
        data_prefix=dict(img={paths.images['val']!r}),
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
    **loader,
)
test_dataloader = val_dataloader
# `data/coco` stands for `data_root`, also where --cfg-options give another
val_evaluator = dict(ann_file={'data/coco/' + paths.annotations['val']!r})
test_evaluator = val_evaluator
"""


def model(case: Case, chosen: Recipe, classes: list[str]) -> str:
    stages = '_base_.channels[1:]' if case.head == 'retinanet' else '_base_.channels'
    heads = {
        'mask_rcnn': (
            '    roi_head=dict(\n'
            '        bbox_head=dict(num_classes=len(classes)),\n'
            '        mask_head=dict(num_classes=len(classes)),\n'
            '    ),'
        ),
        'faster_rcnn': '    roi_head=dict(bbox_head=dict(num_classes=len(classes))),',
        'retinanet': '    bbox_head=dict(num_classes=len(classes)),',
    }[case.head]
    return f"""\
# --- model ----------------------------------------------------------------------------------------

model = dict(
{backbone(case, chosen)}
    neck=dict(in_channels={stages}),
{heads}
)
"""
