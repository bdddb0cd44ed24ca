"""Why a file does not fit a model, and what to do, in words for people."""

import os
import shlex
from pathlib import Path

from .families import FAMILY_NAMES
from .layout import KINDS, Description


def likely_cause(
    theirs: Description, ours: Description, problems: dict[str, dict[str, str]], advice: str
) -> str:
    """What most likely happened, told by what the file's and the model's weights are.

    Args:
        problems: what is wrong -> the names it is wrong with.
        advice: what to do where nothing but the number of classes differs.
    """
    if not theirs.size:
        return f'these are not {FAMILY_NAMES} weights'
    if theirs.size != ours.size:
        built = ours.size or f'no {FAMILY_NAMES}'
        return f'these are {theirs.size} weights; the config builds {built}'
    if ours.is_backbone and theirs.num_classes:
        return f'an {theirs}; it goes in as init_cfg (pretrained=FILE)'
    if theirs.kind == 'classifier' and ours.kind != 'classifier':
        return f'these are weights of {theirs}; its backbone goes in by pretrained=FILE'
    if theirs.kind != ours.kind and not ours.is_backbone:
        return f'these are weights of {theirs}; the config builds {KINDS[ours.kind].label}'
    if theirs.num_classes != ours.num_classes and not ours.is_backbone:
        counts = f'the file is for {theirs.num_classes} classes, the config for {ours.num_classes}'
        names = [name for of_one_kind in problems.values() for name in of_one_kind]
        alone = all(map(ours.is_class_layer, names))
        if not alone:
            return f'{counts}, and they differ in more than that'
        return f'{counts}; {advice or "give the config it was trained with"}'
    if set(problems) == {'missing'}:
        return 'the file is incomplete'
    return 'the file does not fit the model that the config builds'


def how_to_fine_tune(source: str, config: str | None) -> str:
    """The command that makes a file for other classes of one that does not fit."""
    stem = os.path.splitext(os.path.basename(source))[0]
    out = shlex.quote(f'{stem}_headless.pth')
    tool = 'tools/convert_checkpoint.py'
    in_project = Path(__file__).parents[2].joinpath(tool).is_file()
    tool = f'python {tool}' if in_project else 'rmt-convert-checkpoint'
    command = f'{tool} {shlex.quote(source)} {out} --drop-head'
    if config:
        command += f' --config {shlex.quote(config)}'
    return (
        f'to fine-tune it, drop its class layers first: {command}; then train with load_from={out}'
    )
