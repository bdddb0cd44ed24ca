"""The config's text: what differs from the bases, each choice with its reason."""

import os
from pathlib import Path

from backbone.rmt import VARIANTS
from support.own_data import writing_boxes, writing_maps
from support.own_data.pieces import Paths, Start, comment
from support.own_data.recipe import BASES, MAP_HEADS, Case, Choice, Recipe
from support.paths import ROOT

NAMES = {
    'mask_rcnn': 'Mask R-CNN',
    'faster_rcnn': 'Faster R-CNN',
    'retinanet': 'RetinaNet',
    'fpn': 'Semantic FPN',
    'upernet': 'UperNet',
}


def config_text(
    out: Path, case: Case, chosen: Recipe, classes: list[str], paths: Paths, start: Start
) -> str:
    """The whole file."""
    parts = [_head(out, case, chosen, classes, paths)]
    own = writing_maps if case.head in MAP_HEADS else writing_boxes
    parts += [own.data(case, chosen, classes, paths), own.model(case, chosen, classes)]
    parts += [_weights(start), _schedule(case, chosen, start)]
    return '\n'.join(part for part in parts if part)


def path_of_base(out: Path, name: str) -> str:
    """A base as the config names it: relative inside this project, elsewhere by the package."""
    folder = out.absolute().parent
    if folder.is_relative_to(ROOT):
        relative = os.path.relpath(ROOT / name, folder)
        return repr(relative if relative.startswith('.') else f'./{relative}')
    return f"__import__('rmt_downstream').config({name!r})"


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
    {path_of_base(out, f'{folder}/_base_/{base}.py')},
    {path_of_base(out, f'backbone/_base_/rmt_{letter.lower()}.py')},
]
'''


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
