"""The config's text: what differs from the bases, each choice with its reason."""

import os
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from backbone.rmt import VARIANTS
from support.own_data.recipe import BASES, MAP_HEADS, Case, Choice, Recipe
from support.paths import ROOT

NAMES = {
    'mask_rcnn': 'Mask R-CNN',
    'faster_rcnn': 'Faster R-CNN',
    'retinanet': 'RetinaNet',
    'fpn': 'Semantic FPN',
    'upernet': 'UperNet',
}
WIDTH = 96


@dataclass(frozen=True)
class Paths:
    """Where the data lies.

    Attributes:
        root: what all other paths are relative to.
        images: the folder of each split.
        annotations: the annotation file of each split, or the folder of its label maps.
        lists: for label maps, the file that lists the names of each split, if there is one.
        suffixes: of images and label maps.
    """

    root: Path
    images: dict[str, str]
    annotations: dict[str, str]
    lists: dict[str, str] | None = None
    suffixes: tuple[str, str] = ('', '')


@dataclass(frozen=True)
class Start:
    """The weights that the training starts from.

    Attributes:
        key: ``'pretrained'`` for a backbone, ``'load_from'`` for a whole model; empty for none.
        file: as an absolute path.
        why: what of it is used.
        own_classes: whether its class layers are left out.
    """

    key: str = ''
    file: str = ''
    why: str = ''
    own_classes: bool = False


def config_text(
    out: Path, case: Case, chosen: Recipe, classes: list[str], paths: Paths, start: Start
) -> str:
    """The whole file."""
    parts = [_head(out, case, chosen, classes, paths)]
    if case.head in MAP_HEADS:
        from support.own_data.writing_maps import data, model

        parts += [data(case, chosen, classes, paths), model(case, chosen, classes)]
    else:
        parts += [_data(case, chosen, classes, paths), _model(case, chosen, classes)]
    parts += [_weights(start), _schedule(case, chosen, start)]
    return '\n'.join(part for part in parts if part)


def comment(text: str, indent: str = '') -> str:
    return '\n'.join(
        wrap(text, WIDTH, initial_indent=f'{indent}# ', subsequent_indent=f'{indent}# ')
    )


def path_of_base(out: Path, name: str) -> str:
    """A base as the config names it: relative inside this project, absolute elsewhere."""
    folder = out.absolute().parent
    if folder.is_relative_to(ROOT):
        relative = os.path.relpath(ROOT / name, folder)
        return relative if relative.startswith('.') else f'./{relative}'
    return str(ROOT / name)


def _head(out: Path, case: Case, chosen: Recipe, classes: list[str], paths: Paths) -> str:
    folder = 'seg_configs' if case.head in MAP_HEADS else 'det_configs'
    base = f'{case.head}_narrow' if chosen['narrow'].value else BASES[case.head]
    letter = VARIANTS[case.arch].letter
    number = f'{len(classes)} class{"es" if len(classes) > 1 else ""}'
    title = f'{NAMES[case.head]} with RMT-{letter} on {number} of your own'
    return f'''\
"""{title}: {case.images} images to train, {case.val_images} to validate.

Written by tools/new_config.py for {case.machine}. It states what differs from its bases; change
what you like.
"""

_base_ = [
    # {chosen['narrow'].why}
    {path_of_base(out, f'{folder}/_base_/{base}.py')!r},
    {path_of_base(out, f'backbone/_base_/rmt_{letter.lower()}.py')!r},
]
'''


def metainfo(classes: list[str]) -> str:
    names = ', '.join(map(repr, classes))
    if len(names) > 60:
        names = '\n    ' + ',\n    '.join(map(repr, classes)) + ',\n'
        return f'classes = ({names})\nmetainfo = dict(classes=classes)'
    return (
        f'classes = ({names}{"," if len(classes) == 1 else ""})\nmetainfo = dict(classes=classes)'
    )


def loader(case: Case) -> str:
    if case.machine.gpu:
        return f'loader = dict(num_workers={max(2, min(8, case.machine.cores - 1))})'
    return (
        '# loading takes a small part of a step: worker processes would only take time from it\n'
        'loader = dict(num_workers=0, persistent_workers=False)'
    )


def _data(case: Case, chosen: Recipe, classes: list[str], paths: Paths) -> str:
    masks = ', with_mask=True' if case.head == 'mask_rcnn' else ''
    side = chosen['side']
    scale = (1333, 800) if side.value is None else (side.value, side.value)
    return f"""\
# --- data -----------------------------------------------------------------------------------------

data_root = {str(paths.root)!r}
{metainfo(classes)}
{comment(f'width and height at most; {side.why}')}
scale = {scale}

load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True{masks}),
    dict(type='Resize', scale=scale, keep_ratio=True),
]
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
train_pipeline = [*load, dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
test_pipeline = [*load[::2], load[1], dict(type='PackDetInputs', meta_keys=keys)]
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


def _model(case: Case, chosen: Recipe, classes: list[str]) -> str:
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


def backbone(case: Case, chosen: Recipe) -> str:
    lines = []
    if not case.machine.gpu:
        lines += ["        norm_cfg=dict(type='BN'),  # SyncBN is for several GPUs"]
    for key, name in (('drop_path', 'drop_path_rate'), ('frozen', 'frozen_stages')):
        if chosen[key].value is not None:
            lines += [f'        # {chosen[key].why}', f'        {name}={chosen[key].value},']
    return '\n'.join(['    backbone=dict(', '        _base_.rmt,', *lines, '    ),'])


def _weights(start: Start) -> str:
    if not start.key:
        return ''
    return f'{comment(start.why)}\n{start.key} = {start.file!r}\n'


def _schedule(case: Case, chosen: Recipe, start: Start) -> str:
    def line(name: str, choice: Choice) -> str:
        text = f'{name} = {choice.value}  # {choice.why}'
        return text if len(text) <= 100 else f'{comment(choice.why)}\n{name} = {choice.value}'

    metric = 'mIoU' if case.head in MAP_HEADS else 'coco/bbox_mAP'
    accumulate = chosen['accumulate']
    several = ''
    if accumulate.value > 1:
        several = f'\n    accumulative_counts={accumulate.value},  # {accumulate.why}'
    fused = '' if case.machine.gpu else ', fused=True'
    hooks = "\n    dict(type='StrictLoadHook', own_classes=True)," if start.own_classes else ''
    return f"""\
# --- schedule -------------------------------------------------------------------------------------

{line('steps', chosen['steps'])}
{line('warmup', chosen['warmup'])}
{line('val_every', chosen['val_every'])}
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=steps, val_interval=val_every)
optim_wrapper = dict(
    # {chosen['rate'].why}
    optimizer=dict(lr={chosen['rate'].value}{fused}),
    clip_grad=dict(max_norm=5.0),  # one odd image does not undo the others{several}
)
# the rate is for this batch; with another it is scaled, as for several GPUs
auto_scale_lr = dict(enable=True, base_batch_size={chosen['batch'].value})
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=warmup,
        end=steps,
        T_max=steps - warmup,
        eta_min_ratio=0.02,
    ),
]
default_hooks = dict(
    # {chosen['log_every'].why}
    logger=dict(interval={chosen['log_every'].value}, log_metric_by_epoch=False),
    # the best by validation is kept, and the last to go on from with --resume
    checkpoint=dict(
        by_epoch=False,
        interval=val_every,
        max_keep_ckpts=1,
        save_best={metric!r},
        rule='greater',
    ),
)
custom_hooks = [{hooks}
    # ends the training after so many {chosen['patience'].why}
    dict(
        type='EarlyStoppingHook',
        monitor={metric!r},
        rule='greater',
        min_delta=0.0,
        patience={chosen['patience'].value},
    ),
]
log_processor = dict(by_epoch=False, window_size=20)
randomness = dict(seed=0)
"""
