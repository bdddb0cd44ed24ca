"""How weights files are laid out: a table a family of backbones, and one of the kinds of files.

Parameter names here are the released ones, so nothing is renamed. What else a file holds or lacks
stands in :data:`FAMILIES`; what a state dict is, is told by its names and shapes alone.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..attention.positions import decay_rates, rotary_angles
from ..mavit import MAViT
from ..network import Size
from ..ravlt import RAVLT
from ..rmt import DERIVED, VARIANTS, Variant

PREFIX = 'backbone.'  # before a backbone's names in the files of detectors and segmentors


@dataclass(frozen=True)
class Family:
    """The files of one family of backbones.

    Names are given as a bare backbone has them. They are patterns, except ``mark``, ``hidden``,
    ``heads`` (``{}`` stands for the stage) and ``tops``.

    Attributes:
        name: type of the backbone in configs, and its name for people.
        sizes: arch -> size.
        tables: size -> the derived tables as the released code stores them.
        mark: part of a name that only this family has.
        block: start of a block's names, with the stage and the block as groups.
        hidden: a weight of shape (hidden width of the feed-forward network, channels).
        heads: a table of shape (heads,), which not every file has; '' where no file has one.
        derived: tables that follow from the size: in released files, never in a model here.
        output_norms: what ImageNet files lack.
        optional: what any file may lack.
        tops: starts of the names on top of an ImageNet classifier's backbone.
    """

    name: str
    sizes: Mapping[str, Size]
    tables: Callable[[Size], dict[str, Tensor]]
    mark: str
    block: str
    hidden: str
    heads: str
    derived: str
    output_norms: str
    optional: str
    tops: tuple[str, ...]

    def is_derived(self, name: str) -> bool:
        return re.fullmatch(self.derived, name.removeprefix(PREFIX)) is not None

    def is_output_norm(self, name: str) -> bool:
        return re.fullmatch(self.output_norms, name.removeprefix(PREFIX)) is not None

    def is_optional(self, name: str) -> bool:
        return re.fullmatch(self.optional, name) is not None

    def is_top(self, name: str) -> bool:
        return name.startswith(self.tops)


def derived_tables(variant: Variant) -> dict[str, Tensor]:
    """RMT's ``layers.i.Relpos.angle`` (d,) and ``.decay`` (n,) as the released code has them."""
    tables = {}
    for i, (channels, heads) in enumerate(zip(variant.channels, variant.heads, strict=True)):
        # both channels of a turned pair carry the pair's angle
        angle = rotary_angles(channels // heads).repeat_interleave(2)
        tables[f'layers.{i}.Relpos.angle'] = angle
        tables[f'layers.{i}.Relpos.decay'] = decay_rates(heads, variant.decay_span[i])
    return tables


_COUNTERS = r'(.*\.)?num_batches_tracked'  # of batch norms; enter no result

RMT_FILES = Family(
    name='RMT',
    sizes=VARIANTS,
    tables=derived_tables,
    mark='.retention.',
    block=r'layers\.([0-3])\.blocks\.(\d{1,3})\.',
    hidden='layers.{}.blocks.0.ffn.fc1.weight',
    heads='layers.{}.Relpos.decay',
    derived=DERIVED,
    output_norms=r'extra_norms\.[0-3]\.(weight|bias)',
    optional=_COUNTERS,
    tops=('proj.', 'norm.', 'head.', 'aux_head.'),
)


def rotary_tables(size: Size) -> dict[str, Tensor]:
    """RAVLT's and MAViT's ``layers.i.RoPE.angle`` (d / 2,) as the released code has them."""
    return {
        # rows and columns turn by the same angles, and both channels of a pair carry the pair's
        f'layers.{i}.RoPE.angle': rotary_angles(channels // heads // 2).repeat_interleave(2)
        for i, (channels, heads) in enumerate(zip(size.channels, size.heads, strict=True))
    }


RAVLT_FILES = Family(
    name='RAVLT',
    sizes=RAVLT.sizes,
    tables=rotary_tables,
    mark='.attn.qkvo.',
    block=r'layers\.([0-3])\.blocks\.(\d{1,3})\.',
    hidden='layers.{}.blocks.0.ffn.fc1.weight',
    heads='',
    derived=RAVLT.derived,
    output_norms=r'extra_norms\.[0-3]\.(weight|bias)',
    optional=_COUNTERS,
    tops=('proj.', 'norm.', 'head.'),
)
MAVIT_FILES = replace(RAVLT_FILES, name='MAViT', sizes=MAViT.sizes)
FAMILIES = (RMT_FILES, RAVLT_FILES, MAVIT_FILES)

_NONE = r'(?!)'  # matches nothing
UNKNOWN = Family('', {}, lambda _: {}, '', _NONE, '', '', _NONE, _NONE, _COUNTERS, ())
"""Stands for the family of what is in none of them."""

FAMILY_NAMES = ' or '.join(family.name for family in FAMILIES)


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
    class_layers: str = _NONE
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
        family: one of :data:`FAMILIES`, or :data:`UNKNOWN`.
        arch: a key of the family's sizes; also empty for a size of somebody's own.
        size: the backbone's name for people, 'RMT-T'.
        num_classes: how many classes its class layers tell apart.
    """

    kind: str
    family: Family
    arch: str
    size: str
    num_classes: int | None

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


def recognise(state_dict: Mapping[str, Tensor]) -> Description:
    """Tell what a state dict is. Never raises."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    kinds = (k for k, kind in KINDS.items() if any(n.startswith(kind.mark) for n in shapes))
    family = family_of(state_dict)
    arch, size = _backbone_size(family, shapes)
    return Description(next(kinds, ''), family, arch, size, _num_classes(shapes))


def family_of(state_dict: Mapping[str, Tensor]) -> Family:
    """The family of the backbone in a state dict, or :data:`UNKNOWN`."""
    return next((f for f in FAMILIES if any(f.mark in name for name in state_dict)), UNKNOWN)


def _backbone_size(family: Family, shapes: Mapping[str, tuple]) -> tuple[str, str]:
    shapes = {name.removeprefix(PREFIX): shape for name, shape in shapes.items()}
    depths = {}
    for found in filter(None, (re.match(family.block, name) for name in shapes)):
        stage, block = int(found[1]), int(found[2])
        depths[stage] = max(depths.get(stage, 0), block + 1)
    hidden = {i: shapes.get(family.hidden.format(i), ()) for i in sorted(depths)}
    hidden = {i: shape for i, shape in hidden.items() if len(shape) == 2}
    if not hidden:
        return '', ''
    for arch, variant in family.sizes.items():
        if all(
            depths[i] == variant.depths[i]
            and hidden[i] == (variant.channels[i] * variant.ffn_ratio[i], variant.channels[i])
            and shapes.get(family.heads.format(i), (variant.heads[i],)) == (variant.heads[i],)
            for i in hidden
        ):
            return arch, f'{family.name}-{variant.letter}'
    channels = ', '.join(str(shape[1]) for shape in hidden.values())
    depths = [depths[i] for i in hidden]
    return '', f'{family.name} of custom size (channels {channels}; depths {depths})'


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
    tops = () if prefix else family_of(state_dict).tops
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
    """A released ImageNet classifier under the names of ours, and the names of what ours lacks.

    That is a head for token labels, whatever its shape.
    """
    family, found, dropped = family_of(state_dict), {}, []
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
