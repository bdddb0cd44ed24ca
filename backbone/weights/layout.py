"""What a state dict is, told by its names and shapes alone; and the layout of the released files.

Parameter names here are the released ones, so nothing is renamed. Three things differ in a file:
tables that are computed here (``layers.i.Relpos``), the classification heads of ImageNet files,
and the output norms, which ImageNet files have not.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..retention import decay_rates, rotary_angles
from ..variants import VARIANTS, Variant
from .read import CheckpointError

CLASSIFIER = ('proj.', 'norm.', 'head.', 'aux_head.')  # tops of an ImageNet file, not downstream
# kind: (its name for people, a name that only this kind contains); the first that is found counts
KINDS = {
    'cascade_mask_rcnn': ('Cascade Mask R-CNN', 'roi_head.bbox_head.0.'),
    'mask_rcnn': ('Mask R-CNN', 'roi_head.mask_head.'),
    'retinanet': ('RetinaNet', 'bbox_head.retina_'),
    'upernet': ('UperNet', 'decode_head.psp_modules.'),
    'fpn': ('Semantic FPN', 'decode_head.scale_heads.'),
    'other': ('detector or segmentor of another kind', 'backbone.'),
    'token_label': ('ImageNet classifier with token labelling', 'aux_head.'),
    'imagenet': ('ImageNet classifier', 'head.'),
    'backbone': ('backbone', 'patch_embed.'),
}
BACKBONE_KINDS = ('token_label', 'imagenet', 'backbone')
# layers whose size depends on the number of classes
CLASS_LAYER = re.compile(
    r'roi_head\.bbox_head\.(\d\.)?fc_(cls|reg)\.|roi_head\.mask_head\.(\d\.)?conv_logits\.'
    r'|bbox_head\.retina_cls\.|(decode|auxiliary)_head\.conv_seg\.'
)


@dataclass(frozen=True)
class Description:
    """Kind (a key of :data:`KINDS`, '' if unknown), backbone and class count of a state dict.

    ``arch`` is a key of ``VARIANTS``, '' for an RMT of another size or no RMT; ``size`` is the
    backbone's name for people, '' if it is no RMT.
    """

    kind: str
    arch: str
    size: str
    num_classes: int | None

    def __str__(self) -> str:
        if not self.size:
            return 'weights of something else than RMT'
        classes = f', {self.num_classes} classes' if self.num_classes else ''
        return f'{self.size} {KINDS[self.kind][0]}{classes}'


def describe(state_dict: Mapping[str, Tensor]) -> Description:
    """Recognise a state dict. Never raises: what cannot be told stays empty."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    kinds = (k for k, (_, mark) in KINDS.items() if any(n.startswith(mark) for n in shapes))
    arch, size = _backbone_size(shapes)
    return Description(next(kinds, ''), arch, size, _num_classes(shapes))


def _backbone_size(shapes: Mapping[str, tuple]) -> tuple[str, str]:
    hidden, depths, heads = {}, {}, {}
    for name, shape in shapes.items():
        match = re.match(
            r'(?:backbone\.)?layers\.([0-3])\.(blocks\.(\d{1,3})\.|Relpos\.decay$)', name
        )
        if match is None:
            continue
        stage = int(match[1])
        if match[3] is None:
            heads[stage] = shape
        else:
            depths[stage] = max(depths.get(stage, 0), int(match[3]) + 1)
            if match[3] == '0' and name.endswith('.ffn.fc1.weight') and len(shape) == 2:
                hidden[stage] = shape
    stages = sorted(hidden)
    if not stages:
        return '', ''
    for arch, variant in VARIANTS.items():
        if all(
            depths[i] == variant.depths[i]
            and hidden[i] == (variant.channels[i] * variant.ffn_ratio[i], variant.channels[i])
            and heads.get(i, (variant.heads[i],)) == (variant.heads[i],)
            for i in stages
        ):
            return arch, f'RMT-{variant.letter}'
    channels = ', '.join(str(hidden[i][1]) for i in stages)
    return '', f'RMT of custom size (channels {channels}; depths {[depths[i] for i in stages]})'


def _num_classes(shapes: Mapping[str, tuple]) -> int | None:
    def rows(pattern: str) -> int | None:
        found = (s for n, s in shapes.items() if re.fullmatch(pattern, n) and s)
        return next((shape[0] for shape in found), None)

    if logits := rows(r'roi_head\.bbox_head\.(0\.)?fc_cls\.weight'):
        return logits - 1  # the last one is the background
    if logits := rows(r'bbox_head\.retina_cls\.weight'):
        return logits // max((rows(r'bbox_head\.retina_reg\.weight') or 36) // 4, 1)  # an anchor
    return rows(r'decode_head\.conv_seg\.weight') or rows(r'head\.weight')


# --- from file to state dict ---------------------------------------------------------------------


def unwrap(checkpoint: Mapping, source: str, key: str | None = None) -> dict[str, Tensor]:
    """The state dict in a checkpoint: under ``key`` if given, else 'state_dict', 'model', or bare.

    Raises:
        CheckpointError: there is none, or it holds something else than plain dense tensors.
    """
    keys = [key] if key else [k for k in ('state_dict', 'model') if k in checkpoint]
    state_dict = checkpoint.get(keys[0]) if keys else checkpoint
    if isinstance(state_dict, Mapping) and isinstance(state_dict.get('state_dict'), Mapping):
        state_dict = state_dict['state_dict']
    nothing = not isinstance(state_dict, Mapping) or not state_dict
    if nothing or (not keys and not any(isinstance(t, Tensor) for t in checkpoint.values())):
        wanted = f'weights under {key!r}' if key else 'weights'
        raise CheckpointError(f'{source}: holds no {wanted}, only {preview(checkpoint)}')
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise CheckpointError(f'{source}: {name!r} is a {kind}, where only weights should be')
        if problem := _tensor_problem(tensor):
            raise CheckpointError(f'{source}: {name} is {problem}')
    while all(name.startswith('module.') for name in state_dict):  # from data parallel training
        state_dict = {name.removeprefix('module.'): t for name, t in state_dict.items()}
    return dict(state_dict)


def _tensor_problem(tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return 'not a plain dense tensor'
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f'{tuple(tensor.shape)} numbers stretched over a smaller storage'
    return ''


def is_derived(name: str) -> bool:
    """Whether this is a table that follows from the variant: stored in released files, not here."""
    return re.fullmatch(r'(backbone\.)?layers\.\d\.Relpos\.(angle|decay)', name) is not None


def split_backbone(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's tensors under bare names, and the names of the rest (heads)."""
    prefix = 'backbone.' if any(name.startswith('backbone.') for name in state_dict) else ''
    tops = () if prefix else CLASSIFIER
    rest = [n for n in state_dict if not n.startswith(prefix) or n.startswith(tops)]
    away = set(rest)
    kept = {n.removeprefix(prefix): t for n, t in state_dict.items() if n not in away}
    return kept, rest


def preview(names: Iterable, count: int = 3) -> str:
    """The first few names and how many more there are."""
    names = [str(name)[:160] for name in names]
    more = f', and {len(names) - count} more' if len(names) > count else ''
    return (', '.join(names[:count]) or 'nothing') + more


def class_names(meta: dict) -> list[str]:
    """Class names as mmengine ('dataset_meta') or mmdet 2 and mmseg 0 ('CLASSES') store them."""
    dataset = meta.get('dataset_meta')
    names = dataset.get('classes') if isinstance(dataset, dict) else meta.get('CLASSES')
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else []


# --- tables that released files store ------------------------------------------------------------


def relpos_tables(variant: Variant) -> dict[str, Tensor]:
    """``layers.i.Relpos.angle`` (d,) and ``.decay`` (n,) as the released code stores them."""
    tables = {}
    for i, (channels, heads) in enumerate(zip(variant.channels, variant.heads, strict=True)):
        # both channels of a turned pair carry the pair's angle
        angle = rotary_angles(channels // heads).repeat_interleave(2)
        tables[f'layers.{i}.Relpos.angle'] = angle
        tables[f'layers.{i}.Relpos.decay'] = decay_rates(heads, variant.decay_span[i])
    return tables
