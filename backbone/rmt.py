"""RMT: the table of its sizes, its attention, and the network (arXiv 2309.11523).

What tells T, S, B and L apart stands in :data:`VARIANTS` and only there. What every family shares,
from image to features, is :mod:`backbone.network`.
"""

from dataclasses import dataclass

from mmengine.registry import MODELS

from .attention import StageAttention, head_width
from .layers import Block, init_linear
from .network import Network, Size


@dataclass(frozen=True, kw_only=True)
class Variant(Size):
    """The size of one RMT (the paper's table of architectures): a :class:`Size`, and

    Attributes:
        decay_span: the span r of the heads' decay rates, ``log(1 - 2**(-2 - r * m / heads))``.
        axial: True where attention is decomposed along rows and columns, False where it is whole.
    """

    decay_span: tuple[float, ...]
    axial: tuple[bool, ...]


DERIVED = r'layers\.[0-3]\.Relpos\.(angle|decay)'
"""Tables that follow from the size: released files store them, a model here makes them."""

VARIANTS: dict[str, Variant] = {
    'tiny': Variant(
        channels=(64, 128, 256, 512),
        depths=(2, 2, 8, 2),
        heads=(4, 4, 8, 16),
        decay_span=(4, 4, 6, 6),
        ffn_ratio=(3, 3, 3, 3),
        axial=(True, True, False, False),
        drop_path=0.1,
        letter='T',
        released_name='RMT_T3',
    ),
    'small': Variant(
        channels=(64, 128, 256, 512),
        depths=(3, 4, 18, 4),
        heads=(4, 4, 8, 16),
        decay_span=(4, 4, 6, 6),
        ffn_ratio=(4, 4, 3, 3),
        axial=(True, True, True, False),
        drop_path=0.15,
        letter='S',
        released_name='RMT_S',
    ),
    'base': Variant(
        channels=(80, 160, 320, 512),
        depths=(4, 8, 25, 8),
        heads=(5, 5, 10, 16),
        decay_span=(5, 5, 6, 6),
        ffn_ratio=(4, 4, 3, 3),
        axial=(True, True, True, False),
        layer_scale=(None, None, 1e-6, 1e-6),
        drop_path=0.4,
        letter='B',
        released_name='RMT_M2',
    ),
    'large': Variant(
        channels=(112, 224, 448, 640),
        depths=(4, 8, 25, 8),
        heads=(7, 7, 14, 20),
        decay_span=(6, 6, 6, 6),
        ffn_ratio=(4, 4, 3, 3),
        axial=(True, True, True, False),
        layer_scale=(None, None, 1e-6, 1e-6),
        drop_path=0.5,
        letter='L',
        released_name='RMT_L6',
    ),
}


@MODELS.register_module()
class RMT(Network):
    """RMT backbone: :class:`Network` with Manhattan attention.

    Its ``arch`` as a dict has the fields of :class:`Variant`, its ``attention`` is a name in
    :mod:`backbone.attention`.
    """

    sizes = VARIANTS
    size_type = Variant
    stem_strides = (2, 1, 2, 1)
    output_eps = 1e-5
    derived = DERIVED

    def _block(self, stage: int, drop_path: float) -> Block:
        size = self.variant
        return Block(
            size.channels[stage],
            size.heads[stage],
            ffn_ratio=size.ffn_ratio[stage],
            drop_path=drop_path,
            layer_scale=size.layer_scale[stage],
        )

    def _attention(self, stage: int, name: str) -> StageAttention:
        size = self.variant
        heads = size.heads[stage]
        width = head_width(size.channels[stage], heads)
        return StageAttention(name, heads, width, size.decay_span[stage], size.axial[stage])

    def _begin(self) -> None:
        self.apply(init_linear)
