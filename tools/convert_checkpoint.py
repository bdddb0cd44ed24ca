"""Tell what a weights file is, and make a clean, complete, safe one of it.

    python tools/convert_checkpoint.py --inspect FILE
    python tools/convert_checkpoint.py IN OUT.pth
    python tools/convert_checkpoint.py IN OUT.safetensors
    python tools/convert_checkpoint.py IN OUT.pth --drop-head      # to fine-tune on own classes
    python tools/convert_checkpoint.py IN OUT.pth --to released    # for the released code

IN is a file in the released layout (ImageNet, detector or segmentor) or one of this project. Of an
ImageNet file OUT has the backbone; with a classifier's --config it has the classifier as well. The
kind, variant and class count are recognised. OUT is written only if every tensor is accounted for.
Where nothing in IN tells whether it is of RAVLT or of MAViT, a --config does, and OUT then says it.
"""

import argparse
import os

import torch
from mmengine.registry import MODELS, init_default_scope
from support import cli
from support.config import find_config, from_file
from support.paths import ROOT
from torch import Tensor, nn

from backbone.network import NUM_STAGES
from backbone.weights.checkpoint import (
    Checkpoint,
    CheckpointError,
    class_names,
    first_few,
    meta_in,
    own_meta,
    printable,
    told_family,
)
from backbone.weights.families import FAMILIES, family_in
from backbone.weights.fetch import local_file, sha256_of
from backbone.weights.layout import (
    KINDS,
    RELEASED_CLASSIFIERS,
    Description,
    as_classifier,
    as_released,
    recognise,
    split_backbone,
)
from backbone.weights.match import Match, match
from backbone.weights.read import read_checkpoint, state_dict_in
from backbone.weights.write import (
    LAYOUTS,
    class_layers,
    describe_source,
    progress,
    released_tables,
    write_checkpoint,
)

CONFIGS = {  # the config of a kind, `{}` as in rmt_t; all of a kind and variant build one model
    'mask_rcnn': 'det_configs/mask_rcnn_{}_fpn_*_coco.py',
    'cascade_mask_rcnn': 'det_configs/cascade_mask_rcnn_{}_fpn_*_coco.py',
    'retinanet': 'det_configs/retinanet_{}_fpn_*_coco.py',
    'fpn': 'seg_configs/fpn_{}_*_ade20k.py',
    'upernet': 'seg_configs/upernet_{}_*_ade20k.py',
    'dino': 'det_configs/dino_{}_*_coco.py',
    'mask2former': 'det_configs/mask2former_{}_*_coco.py',
    'mask2former_seg': 'seg_configs/mask2former_{}_*_ade20k.py',
    'rtmdet': 'det_configs/rtmdet_{}_*_coco.py',
    'atss': 'det_configs/atss_{}_fpn_*_coco.py',
    'classifier': 'cls_configs/{}_300e_in1k.py',
}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.input = local_file(args.input)
    if args.inspect:
        inspect(args.input, args.ema)
    else:
        convert(args)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('input', metavar='IN', help='.pth or .safetensors file, or its address')
    parser.add_argument('output', metavar='OUT', nargs='?', help='file to write; must not exist')
    parser.add_argument('--inspect', action='store_true', help='only tell what IN is')
    archs = dict.fromkeys(arch for family in FAMILIES for arch in family.sizes)
    parser.add_argument('--arch', choices=archs, help='refuse IN if it is of another variant')
    parser.add_argument('--config', help='check IN against the model of this config')
    parser.add_argument(
        '--to',
        choices=LAYOUTS,
        help="layout of OUT: ours, or that of the released files (default: by OUT's ending)",
    )
    parser.add_argument('--ema', action='store_true', help='take the averaged weights')
    parser.add_argument(
        '--drop-head',
        action='store_true',
        help='leave out the layers whose size is the class count, to train them on own classes',
    )
    args = parser.parse_args(argv)
    if not args.inspect and args.output is None:
        parser.error('give OUT, or --inspect to only look')
    return args


# --- telling -------------------------------------------------------------------------------------


def inspect(path: str, ema: bool = False) -> None:
    """Print kind, variant, parameters, epoch, class count and what else is inside."""
    checkpoint = read_checkpoint(path)
    state_dict = weights_in(checkpoint, path, ema)
    description = recognise(state_dict, told_family(checkpoint))
    meta = meta_in(checkpoint)
    own = own_meta(checkpoint)
    done = progress(checkpoint)
    classes = class_names(meta)
    variant = None if untold(description) else description.variant
    released = variant.released_name if variant else ''
    with open(path, 'rb') as file:
        sha256 = sha256_of(file)
    lines = {
        'file': f'{path} ({os.path.getsize(path):,} bytes)',
        'sha256': sha256,
        'kind': KINDS[description.kind].label if description.kind else 'unknown',
        'variant': description.size + (f' (released as {released})' if released else ''),
        'family': untold(description),
        'heads': '' if variant else ', '.join(f'{heads:g}' for heads in description.heads),
        'parameters': f'{count_parameters(state_dict, description):,} in {len(state_dict)} tensors',
        'type': ', '.join(
            sorted({str(t.dtype).removeprefix('torch.') for t in state_dict.values()})
        ),
        'classes': str(description.num_classes or '')
        + (f' ({first_few(classes, 5)})' if classes else ''),
        'epoch': str(done.get('epoch', '')),
        'iteration': str(done.get('iter', '')),
        'written by': listed([f'{k} {meta[k]}' for k in meta if str(k).endswith('_version')]),
        'converted': f'from {own.get("source")} on {own.get("date")}' if 'date' in own else '',
        'tensors': f'sha256 {own["tensors_sha256"]}' if own.get('tensors_sha256') else '',
        'left out': listed(own.get('dropped_head', [])),
        'also inside': listed(others(checkpoint, state_dict)),
        'complete': completeness(state_dict, description, path),
    }
    for name, text in lines.items():
        if text:
            print(f'{name:>12}: {printable(text)}')


def weights_in(checkpoint: Checkpoint, path: str, ema: bool) -> dict[str, Tensor]:
    """The weights, or the averaged ones; where mmengine averaged, these are what it saves first."""
    key = 'model_ema' if ema and 'ema_state_dict' not in checkpoint else None
    return state_dict_in(checkpoint, path, key)


def untold(description: Description) -> str:
    """Where nothing tells the family, a line that says so."""
    if description.told or not description.family.names:
        return ''
    return f'{description.family.name}, nothing in the file tells which'


def listed(names: list[str]) -> str:
    return first_few(names, 12) if names else ''


def completeness(state_dict: dict[str, Tensor], description: Description, path: str) -> str:
    """Whether the backbone is whole; the heads are checked when converting or loading.

    Detectors have the output norms of the stages that are read, and here of no other.
    """
    if not description.arch:
        return ''
    family = description.family
    try:
        found = check_backbone(family.from_released(state_dict), description, path)
    except CheckpointError as error:
        return f'no: {str(error).removeprefix(path)[2:]}'
    lacking = {name.split('.')[1] for name in found.filled if family.is_output_norm(name)}
    if not lacking or description.is_backbone or description.kind == 'classifier':
        return 'the backbone is'
    if len(lacking) == NUM_STAGES:
        return 'the backbone is, without output norms'
    stages = [str(i + 1) for i in range(NUM_STAGES) if str(i) not in lacking]
    return f'the backbone is, with the output norms of stages {", ".join(stages)}'


def others(checkpoint: Checkpoint, state_dict: dict[str, Tensor]) -> list[str]:
    """What a file holds besides the weights."""
    found = [name for name in ('optimizer', 'model_ema', 'message_hub') if name in checkpoint]
    skip = {*found, 'state_dict', 'model', 'meta', 'epoch', *state_dict}
    return found + [str(name) for name in checkpoint if name not in skip]


def count_parameters(state_dict: dict[str, Tensor], description: Description) -> int:
    """Learned numbers: neither running statistics nor derived tables."""
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    derived = description.family.is_derived
    return sum(
        t.numel() for n, t in state_dict.items() if not n.endswith(buffers) and not derived(n)
    )


# --- converting ----------------------------------------------------------------------------------


def convert(args: argparse.Namespace) -> None:
    """Write OUT, or raise and write nothing.

    Raises:
        CheckpointError: IN is refused, or OUT exists.
    """
    if os.path.lexists(args.output):
        raise CheckpointError(f'{args.output}: exists; give another name or move it away')
    layout = args.to or ('safetensors' if args.output.endswith('.safetensors') else 'pth')
    checkpoint = read_checkpoint(args.input)
    state_dict = weights_in(checkpoint, args.input, args.ema)
    description = recognise(state_dict, told_family(checkpoint))
    print(f'{args.input}: {description}')
    if args.arch and args.arch != description.arch:
        asked = [f'{f.name}-{f.sizes[args.arch].letter}' for f in FAMILIES if args.arch in f.sizes]
        raise CheckpointError(
            f'{args.input}: these are {description}; --arch asks for {" or ".join(asked)}'
        )
    before, tops = set(state_dict), []
    state_dict = description.family.from_released(state_dict)
    if description.kind in RELEASED_CLASSIFIERS:
        if args.config and builds_classifier(args.config):
            state_dict, tops = as_classifier(state_dict)
            description = recognise(state_dict, description.family.name)
        else:
            tops = [name for name in state_dict if description.family.is_top(name)]
    renamed = 'as ours are' if set(state_dict) - before else 'none'
    result, description = check(state_dict, description, args)

    derived = [name for name in state_dict if description.family.is_derived(name)]
    kept = {n: t for n, t in state_dict.items() if n not in {*derived, *tops}}
    kept |= {name: result.state_dict[name] for name in result.filled}
    dropped_head = class_layers(kept, description, args.input) if args.drop_head else []
    for name in dropped_head:
        del kept[name]
    for name, tensor in kept.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f'{args.input}: {name} holds NaN or infinity')
    if layout == 'released':
        ours = set(kept)
        if description.kind == 'classifier':
            kept = as_released(kept)
            description = recognise(kept, description.family.name)
        kept = description.family.to_released(kept)
        renamed = 'as released' if set(kept) - ours else 'none'
        kept |= released_tables(kept, description)
    meta = describe_source(checkpoint, description, dropped_head, kept, args.input)
    write_checkpoint(args.output, kept, meta, layout, description)

    matched = len([name for name in state_dict if name not in {*derived, *tops}])
    print(f'  matched: {matched} tensors; renamed: {renamed}')
    groups = {
        'derived tables': derived,
        'classification head': tops,
        'class layers': dropped_head,
        'beside the weights': others(checkpoint, state_dict),
    }
    parts = [f'{what} ({first_few(names, 6)})' for what, names in groups.items() if names]
    print(f'  dropped: {"; ".join(parts) or "nothing"}')
    print(f'  filled: {first_few(result.filled, 12)}')
    with open(args.output, 'rb') as file:
        print(f'{args.output}: {len(kept)} tensors, sha256 {sha256_of(file)}')


def check(
    state_dict: dict[str, Tensor], description: Description, args: argparse.Namespace
) -> tuple[Match, Description]:
    """Hold the file against the model of --config, or the one its kind and variant call for.

    And what it is: where nothing tells the family, the one that --config builds.
    """
    is_backbone = description.is_backbone
    if args.config is None:
        if line := untold(description):
            print(f'{args.input}: {line}: give the --config it was trained with, and OUT says it')
        if is_backbone and description.arch:
            return check_backbone(state_dict, description, args.input), description
        config = config_of(description, args.input)
    else:
        config = args.config
    # the class count is the file's own choice, unless a config is there to be compared with
    num_classes = description.num_classes if args.config is None or args.drop_head else None
    model = build(config, None if is_backbone else num_classes)
    if args.config is not None and (line := untold(description)):
        description = recognise(state_dict, family_in(model).name)
        print(f'{args.input}: {line}; taken for {description.size}, as --config has it')
    if is_backbone:
        return check_backbone(state_dict, description, args.input, model.backbone), description
    return match(model, state_dict, args.input, told=description.told), description


def config_of(description: Description, path: str) -> str:
    """A config that builds the model of a kind and variant.

    Raises:
        CheckpointError: there is none here.
    """
    found = []
    if description.arch and description.kind in CONFIGS:
        size = f'{description.family.names[0]}_{description.variant.letter}'.lower()
        found = sorted(ROOT.glob(CONFIGS[description.kind].format(size)))
    if not found:
        raise CheckpointError(f'{path}: {description}; give the --config that builds its model')
    return str(found[0])


def check_backbone(
    state_dict: dict[str, Tensor],
    description: Description,
    path: str,
    model: nn.Module | None = None,
) -> Match:
    """Hold the backbone in a file of any kind against ``model``, or the one of its size.

    Whole output norms may lack.
    """
    kept, _ = split_backbone(state_dict)
    family = description.family
    if model is None:
        model = MODELS.build(dict(type=family.names[0], arch=description.arch))
    norms = {name.rpartition('.')[0] for name in kept if family.is_output_norm(name)}

    def may_lack(name: str) -> bool:
        return family.is_output_norm(name) and name.rpartition('.')[0] not in norms

    return match(model, kept, path, may_lack, told=description.told)


def builds_classifier(path: str) -> bool:
    """Whether the model of a config has what is on top of the backbone in an ImageNet file."""
    neck = from_file(find_config(path)).model.get('neck') or {}
    return neck.get('type') == 'ProjectionNeck'


def build(path: str, num_classes: int | None) -> nn.Module:
    """The model of a config, with another class count if one is given."""
    config = from_file(find_config(path))
    init_default_scope(config.get('default_scope', 'mmengine'))
    if num_classes is not None:
        set_num_classes(config.model, num_classes)
    return MODELS.build(config.model)


def set_num_classes(node: object, num_classes: int) -> None:
    if isinstance(node, dict):
        for key in ('num_classes', 'num_things_classes'):
            if key in node:
                node[key] = num_classes
        node = list(node.values())
    for child in node if isinstance(node, list) else ():
        set_num_classes(child, num_classes)


if __name__ == '__main__':
    cli.run(main)
