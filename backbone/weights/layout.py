"""What a state dict is, told by its names and shapes: family, size, kind of file, classes.

The families are in :mod:`backbone.weights.families`, the kinds of files in :data:`KINDS`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..network import Size
from .families import FAMILY_NAMES, NOTHING, PREFIX, Family, family_of


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        label: its name for people.
        mark: start of a name that only this kind has.
        class_layers: pattern of the layers whose size depends on the number of classes.
        is_backbone: whether it holds a bare backbone, perhaps with a classifier on top.
    """

    label: str
    mark: str
    class_layers: str = NOTHING
    is_backbone: bool = False


_ROI = r'roi_head\.(bbox_head\.(\d\.)?fc_(cls|reg)|mask_head\.(\d\.)?conv_logits)\.'
_DENSE = r'bbox_head\.(retina_cls|atss_cls|rtm_cls\.\d|cls_branches\.\d+)\.'
_DENOISING = r'dn_query_generator\.label_embedding\.'
_MASKS = r'(panoptic|decode)_head\.cls_embed\.'
_SEG = r'(decode|auxiliary)_head\.conv_seg\.'
_ANY = '|'.join((_ROI, _DENSE, _DENOISING, _MASKS, _SEG))
KINDS = {  # the first whose mark is found counts
    'classifier': Kind('classifier', 'neck.proj.', r'head\.fc\.'),
    'cascade_mask_rcnn': Kind('Cascade Mask R-CNN', 'roi_head.bbox_head.0.', _ROI),
    'mask_rcnn': Kind('Mask R-CNN', 'roi_head.mask_head.', _ROI),
    'retinanet': Kind('RetinaNet', 'bbox_head.retina_', _DENSE),
    'atss': Kind('ATSS', 'bbox_head.atss_', _DENSE),
    'rtmdet': Kind('RTMDet', 'bbox_head.rtm_', _DENSE),
    'dino': Kind('DINO', 'dn_query_generator.', f'{_DENSE}|{_DENOISING}'),
    'mask2former': Kind('Mask2Former (detection)', 'panoptic_head.query_feat.', _MASKS),
    'mask2former_seg': Kind('Mask2Former (segmentation)', 'decode_head.query_feat.', _MASKS),
    'upernet': Kind('UperNet', 'decode_head.psp_modules.', _SEG),
    'fpn': Kind('Semantic FPN', 'decode_head.scale_heads.', _SEG),
    'other': Kind('detector or segmentor of another kind', PREFIX, _ANY),
    'token_label': Kind('ImageNet classifier with token labelling', 'aux_head.', is_backbone=True),
    'imagenet': Kind('ImageNet classifier', 'head.', is_backbone=True),
    'backbone': Kind('backbone', 'patch_embed.', is_backbone=True),
}


# --- what a state dict is ------------------------------------------------------------------------


@dataclass(frozen=True)
class Description:
    """What a state dict is; what cannot be told is empty.

    Attributes:
        kind: a key of :data:`KINDS`.
        family: one of :data:`~backbone.weights.families.FAMILIES`, several as one where nothing
            tells between them, or :data:`~backbone.weights.families.UNKNOWN`.
        arch: a key of the family's sizes; also empty for a size of somebody's own.
        size: the backbone's name for people, 'RMT-T'.
        num_classes: how many classes its class layers tell apart.
        heads: of each stage whose derived tables are there, which tell it.
    """

    kind: str
    family: Family
    arch: str
    size: str
    num_classes: int | None
    heads: tuple[float, ...] = ()

    @property
    def told(self) -> str:
        """The family's name; empty where it is not known."""
        return self.family.name if len(self.family.names) == 1 else ''

    @property
    def variant(self) -> Size | None:
        return self.family.sizes.get(self.arch)

    @property
    def is_backbone(self) -> bool:
        return bool(self.kind) and KINDS[self.kind].is_backbone

    def is_class_layer(self, name: str) -> bool:
        return bool(self.kind) and re.match(KINDS[self.kind].class_layers, name) is not None

    def __str__(self) -> str:
        if not self.size:
            return f'weights of something else than {FAMILY_NAMES}'
        classes = f', {self.num_classes} classes' if self.num_classes else ''
        return f'{self.size} {KINDS[self.kind].label}{classes}'


def recognise(state_dict: Mapping[str, Tensor], told: str = '') -> Description:
    """Tell what a state dict is. Never raises.

    Args:
        told: the name of the family that something beside the weights speaks of; it counts where
            names and shapes leave a choice.
    """
    shapes = _shapes(state_dict)
    kinds = (k for k, kind in KINDS.items() if any(n.startswith(kind.mark) for n in shapes))
    family = family_of(shapes, told)
    arch, size, heads = _backbone_size(family, shapes)
    return Description(next(kinds, ''), family, arch, size, _num_classes(shapes), heads)


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def _backbone_size(
    family: Family, shapes: Mapping[str, tuple]
) -> tuple[str, str, tuple[float, ...]]:
    """Its arch, its name for people, and the heads of the stages that tell them."""
    shapes = {name.removeprefix(PREFIX): shape for name, shape in shapes.items()}
    depths = {}
    for found in filter(None, (re.match(family.block, name) for name in shapes)):
        stage, block = int(found[1]), int(found[2])
        depths[stage] = max(depths.get(stage, 0), block + 1)
    hidden = {i: shapes.get(family.hidden.format(i), ()) for i in sorted(depths)}
    hidden = {
        i: shape[:2] for i, shape in hidden.items() if shape[2:] in ((), (1, 1)) and shape[1:]
    }
    if not hidden:
        return '', '', ()
    heads = {}
    for i, (_, channels) in hidden.items():
        table = shapes.get(family.heads.format(i), ())
        if len(table) == 1 and table[0]:
            heads[i] = family.heads_of(table[0], channels)
    counts = tuple(heads.values())
    for arch, variant in family.sizes.items():
        if all(
            depths[i] == variant.depths[i]
            and hidden[i] == (int(variant.channels[i] * variant.ffn_ratio[i]), variant.channels[i])
            and heads.get(i, variant.heads[i]) == variant.heads[i]
            for i in hidden
        ):
            return arch, family.named(variant.letter), counts
    channels = ', '.join(str(shape[1]) for shape in hidden.values())
    depths = [depths[i] for i in hidden]
    size = f'{family.name} of custom size (channels {channels}; depths {depths})'
    return '', size, counts


def _num_classes(shapes: Mapping[str, tuple]) -> int | None:
    def rows(pattern: str) -> int | None:
        found = (s for n, s in shapes.items() if re.fullmatch(pattern, n) and s)
        return next((shape[0] for shape in found), None)

    if logits := rows(r'roi_head\.bbox_head\.(0\.)?fc_cls\.weight'):
        return logits - 1  # the last one is the background
    if logits := rows(r'bbox_head\.retina_cls\.weight'):
        return logits // max((rows(r'bbox_head\.retina_reg\.weight') or 36) // 4, 1)  # an anchor
    if logits := rows(r'(panoptic|decode)_head\.cls_embed\.weight'):
        return logits - 1  # the last one is nothing
    one_stage = r'bbox_head\.(atss_cls|(rtm_cls|cls_branches)\.0)'
    return rows(rf'({one_stage}|decode_head\.conv_seg|head(\.fc)?)\.weight')


def split_backbone(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's tensors under bare names, and the names of the rest (heads)."""
    prefix = PREFIX if any(name.startswith(PREFIX) for name in state_dict) else ''
    tops = () if prefix else family_of(_shapes(state_dict)).tops
    rest = [n for n in state_dict if not n.startswith(prefix) or n.startswith(tops)]
    away = set(rest)
    kept = {n.removeprefix(prefix): t for n, t in state_dict.items() if n not in away}
    return kept, rest


# --- an ImageNet classifier, as released and here -------------------------------------------------

RELEASED_CLASSIFIERS = ('imagenet', 'token_label')
"""Kinds of files that :func:`as_classifier` takes."""

_TOPS = {'proj.': 'neck.proj.', 'norm.': 'neck.norm.', 'head.': 'head.fc.'}
"""Starts of the names on top of the backbone: as released -> here."""


def as_classifier(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """An ImageNet classifier under the names of ours, and the names of what ours lacks.

    That is a head for token labels, whatever its shape. The backbone has our names already.
    """
    family, found, dropped = family_of(_shapes(state_dict)), {}, []
    for name, tensor in state_dict.items():
        top = next((start for start in _TOPS if name.startswith(start)), None)
        if top:
            found[_TOPS[top] + name.removeprefix(top)] = tensor
        elif family.is_top(name):
            dropped.append(name)
        else:
            found[PREFIX + name] = tensor
    return found, dropped


def as_released(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A classifier of ours under the released names."""
    ours = {here: there for there, here in _TOPS.items()} | {PREFIX: ''}
    found = {}
    for name, tensor in state_dict.items():
        start = next(start for start in ours if name.startswith(start))
        found[ours[start] + name.removeprefix(start)] = tensor
    return found
