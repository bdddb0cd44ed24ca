"""The parts of a segmentor's config that a detector's has otherwise."""

from support.own_data.pieces import Paths, backbone, comment, loader, metainfo
from support.own_data.recipe import Case, Recipe


def data(case: Case, chosen: Recipe, classes: list[str], paths: Paths) -> str:
    side = chosen['side']
    lists = [
        f'\n        ann_file={paths.lists[split]!r},' if paths.lists else ''
        for split in ('train', 'val')
    ]
    prefixes = [
        '\n        data_prefix=dict(\n'
        f'            img_path={paths.images[split]!r},\n'
        f'            seg_map_path={paths.annotations[split]!r},\n'
        '        ),'
        for split in ('train', 'val')
    ]
    return f"""\
# --- data -----------------------------------------------------------------------------------------

data_root = {str(paths.root)!r}
{metainfo(classes)}
{comment(f'of the crops to train on, and the shorter side of an image; {side.why}')}
size = {side.value}

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(4 * size, size), ratio_range=(0.8, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(size, size), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(4 * size, size), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
dataset = dict(
    type='BaseSegDataset',
    metainfo=metainfo,
    img_suffix={paths.suffixes[0]!r},
    seg_map_suffix={paths.suffixes[1]!r},
    reduce_zero_label=False,
)
{loader(case)}
train_dataloader = dict(
    batch_size={chosen['batch'].value},  # {chosen['batch'].why}
    dataset=dict({lists[0]}{prefixes[0]}
        pipeline=train_pipeline,
        **dataset,
    ),
    **loader,
)
val_dataloader = dict(
    dataset=dict({lists[1]}{prefixes[1]}
        pipeline=test_pipeline,
        **dataset,
    ),
    **loader,
)
test_dataloader = val_dataloader
"""


def model(case: Case, chosen: Recipe, classes: list[str]) -> str:
    heads = {
        'fpn': (
            '    neck=dict(in_channels=_base_.channels),\n'
            '    decode_head=dict(num_classes=len(classes)),'
        ),
        'upernet': (
            '    decode_head=dict(in_channels=_base_.channels, num_classes=len(classes)),\n'
            '    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=len(classes)),'
        ),
    }[case.head]
    return f"""\
# --- model ----------------------------------------------------------------------------------------

model = dict(
    data_preprocessor=dict(size=(size, size)),
{backbone(case, chosen)}
{heads}
)
"""
