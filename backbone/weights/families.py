"""The families of backbones, as their files have them: a table a family, and what tells them apart.

RMT's files are told by their names. RAVLT's and MAViT's have the same names and the same shapes:
either loads into the other network, which then computes something else. What may tell these is the
width of an ImageNet classifier, the backbone's type in the text of a config beside the weights, and
the name that every file written here has in its ``meta``.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..attention.positions import decay_rates, rotary_angles
from ..mavit import MAViT
from ..network import Network, Size
from ..ravlt import RAVLT, from_released, to_released
from ..rmt import RMT, Variant

PREFIX = 'backbone.'  # before a backbone's names in the files of detectors and segmentors

Renaming = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _as_it_is(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return state_dict


@dataclass(frozen=True)
class Family:
    """The files of one family of backbones.

    Names are given as a bare backbone has them. They are patterns, except ``mark``, ``hidden``,
    ``heads`` (``{}`` stands for the stage) and ``tops``.

    Attributes:
        name: type of the backbone in configs, and its name for people.
        network: what a config builds of that type.
        sizes: arch -> size.
        tables: size -> the derived tables as the released code stores them.
        mark: part of a name that no family with other names has.
        block: start of a block's names, with the stage and the block as groups.
        hidden: a weight of shape (hidden width of the feed-forward network, channels), perhaps
            with two ones behind.
        heads: a table that not every file has.
        heads_of: length of that table, channels -> heads.
        derived: tables that follow from the size: in released files, never in a model here.
        output_norms: what ImageNet files lack.
        optional: what any file may lack.
        tops: starts of the names on top of an ImageNet classifier's backbone.
        top_widths: rows of a released classifier's projection, where they tell the family.
        types: the backbone's type in configs, the released ones and ours.
        from_released: released names and shapes -> ours; what is ours stays as it is.
        to_released: the other way.
    """

    name: str
    network: type[Network] | None
    sizes: Mapping[str, Size]
    tables: Callable[[Size], dict[str, Tensor]]
    mark: str
    block: str
    hidden: str
    heads: str
    heads_of: Callable[[int, int], float]
    derived: str
    output_norms: str
    optional: str
    tops: tuple[str, ...]
    top_widths: tuple[int, ...] = ()
    types: tuple[str, ...] = ()
    from_released: Renaming = _as_it_is
    to_released: Renaming = _as_it_is

    @property
    def names(self) -> tuple[str, ...]:
        """One, or those that it may be."""
        return tuple(self.name.split(_OR)) if self.name else ()

    def may_be(self, other: 'Family') -> bool:
        """Whether nothing is known that speaks against it."""
        return not (self.names and other.names) or not set(self.names).isdisjoint(other.names)

    def named(self, letter: str) -> str:
        """A size for people, 'RMT-T'."""
        return _OR.join(f'{name}-{letter}' for name in self.names)

    def is_derived(self, name: str) -> bool:
        return re.fullmatch(self.derived, name.removeprefix(PREFIX)) is not None

    def is_output_norm(self, name: str) -> bool:
        return re.fullmatch(self.output_norms, name.removeprefix(PREFIX)) is not None

    def is_optional(self, name: str) -> bool:
        return re.fullmatch(self.optional, name) is not None

    def is_top(self, name: str) -> bool:
        return name.startswith(self.tops)


_OR = ' or '
_BLOCK = r'layers\.([0-3])\.blocks\.(\d{1,3})\.'
_HIDDEN = 'layers.{}.blocks.0.ffn.fc1.weight'
_OUTPUT_NORMS = r'extra_norms\.[0-3]\.(weight|bias)'
_COUNTERS = r'(.*\.)?num_batches_tracked'  # of batch norms; enter no result


def derived_tables(variant: Variant) -> dict[str, Tensor]:
    """RMT's ``layers.i.Relpos.angle`` (d,) and ``.decay`` (n,) as the released code has them."""
    tables = {}
    for i, (channels, heads) in enumerate(zip(variant.channels, variant.heads, strict=True)):
        # both channels of a turned pair carry the pair's angle
        angle = rotary_angles(channels // heads).repeat_interleave(2)
        tables[f'layers.{i}.Relpos.angle'] = angle
        tables[f'layers.{i}.Relpos.decay'] = decay_rates(heads, variant.decay_span[i])
    return tables


def rotary_tables(size: Size) -> dict[str, Tensor]:
    """RAVLT's and MAViT's ``layers.i.RoPE.angle`` (d / 2,) as the released code has them."""
    return {
        # rows and columns turn by the same angles, and both channels of a pair carry the pair's
        f'layers.{i}.RoPE.angle': rotary_angles(channels // heads // 2).repeat_interleave(2)
        for i, (channels, heads) in enumerate(zip(size.channels, size.heads, strict=True))
    }


RMT_FILES = Family(
    name='RMT',
    network=RMT,
    sizes=RMT.sizes,
    tables=derived_tables,
    mark='.retention.',
    block=_BLOCK,
    hidden=_HIDDEN,
    heads='layers.{}.Relpos.decay',
    heads_of=lambda length, channels: length,
    derived=RMT.derived,
    output_norms=_OUTPUT_NORMS,
    optional=_COUNTERS,
    tops=('proj.', 'norm.', 'head.', 'aux_head.'),
)
RAVLT_FILES = Family(
    name='RAVLT',
    network=RAVLT,
    sizes=RAVLT.sizes,
    tables=rotary_tables,
    mark='.attn.qkvo.',
    block=_BLOCK,
    hidden=_HIDDEN,
    heads='layers.{}.RoPE.angle',
    heads_of=lambda length, channels: channels / (2 * length),
    derived=RAVLT.derived,
    output_norms=_OUTPUT_NORMS,
    optional=_COUNTERS,
    tops=('proj.', 'norm.', 'head.'),
    top_widths=(1024,),
    types=('RAVLT', 'GLTA'),
    from_released=from_released,
    to_released=to_released,
)
MAVIT_FILES = replace(
    RAVLT_FILES,
    name='MAViT',
    network=MAViT,
    sizes=MAViT.sizes,
    top_widths=(2048, 2560),
    types=('MAViT', 'MALA', 'RankBoostLinearTransformerAttn'),
)
FAMILIES = (RMT_FILES, RAVLT_FILES, MAVIT_FILES)

NOTHING = r'(?!)'
UNKNOWN = Family(
    '', None, {}, lambda _: {}, '', NOTHING, '', '', lambda *_: 0, NOTHING, NOTHING, _COUNTERS, ()
)
"""Stands for the family of what is in none of them."""

FAMILY_NAMES = _OR.join([', '.join(family.name for family in FAMILIES[:-1]), FAMILIES[-1].name])


# --- what tells them -----------------------------------------------------------------------------


def family_of(shapes: Mapping[str, tuple], told: str = '') -> Family:
    """The family of the backbone in a state dict, or :data:`UNKNOWN`.

    Where nothing tells between several, all of them as one, whose name says so.

    Args:
        shapes: name -> shape.
        told: the name of the family that something beside the weights speaks of.
    """
    marks = {family.mark: None for family in FAMILIES}
    mark = next((mark for mark in marks if any(mark in name for name in shapes)), None)
    found = [family for family in FAMILIES if family.mark == mark]
    width = (shapes.get('proj.weight') or shapes.get('neck.proj.weight') or (0,))[0]
    for tells in (lambda f: f.name == told, lambda f: width in f.top_widths):
        if len(found) > 1:
            found = [family for family in found if tells(family)] or found
    if len(found) > 1:
        return replace(found[0], name=_OR.join(family.name for family in found))
    return found[0] if found else UNKNOWN


def family_in(model: nn.Module) -> Family:
    """The family of the backbones of ours in a model; :data:`UNKNOWN` if there is none, or two."""
    kinds = {type(module) for module in model.modules() if isinstance(module, Network)}
    networks = {family.network: family.name for family in FAMILIES}
    # MAViT is made from RAVLT: the nearest counts
    names = {next((networks[k] for k in kind.__mro__ if k in networks), '') for kind in kinds}
    return next((family for family in FAMILIES if names == {family.name}), UNKNOWN)


_TYPES = {kind: family.name for family in FAMILIES for kind in family.types}
_TYPE = re.compile(rf"""\btype['"]?\s?[=:]\s?['"](?:\w+\.)?({'|'.join(_TYPES)})['"]""")


def family_in_config(text: str) -> str:
    """The name of the family that the text of a config builds; empty if none, or several.

    The text is searched for the backbone's type, and never run.
    """
    found = {_TYPES[match[1]] for match in _TYPE.finditer(text)}
    return found.pop() if len(found) == 1 else ''
