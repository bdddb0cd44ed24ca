"""RMT's attention as a layer of its own, for other networks."""

import torch
from torch import Tensor

from .attention import StageAttention, head_width
from .kernels.compiled import let_inductor_order_symbols
from .kernels.layers import Retention, accelerate
from .layers import init_linear


class ManhattanAttention(Retention):
    """Manhattan self-attention of a grid of tokens, (B, H, W, C) -> (B, H, W, C).

    ``out(attention(q, k, v) + DW5x5(v))`` with q, k, v and out linear. The weights are those of
    ``retention`` in a block of RMT, by the same names; they begin as RMT's do. Nothing depends on
    a size: any grid goes through.

    Args:
        dim: channels C; each head takes C / n of them, an even number.
        heads: n. Head m = 0 .. n - 1 adds ``log(1 - 2**(-2 - span * m / n))`` to a score for every
            step of |dh| + |dw| between two places: the first head sees nearest.
        axial: attend inside each row, then inside each column, instead of to all places at once.
        span: how far the heads' decay rates reach; RMT has 4 in its first stages and 6 in its last.
        attention: how it is computed, a name in :mod:`backbone.attention`. Any dtype goes through;
            of float64 only 'naive' keeps all digits, the others compute in float32 on the way.

    Raises:
        ValueError: heads that do not divide the channels into even parts, a negative span, an
            unknown name; in the forward pass, a tensor of another shape.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        axial: bool = False,
        span: float = 4,
        attention: str = 'auto',
    ) -> None:
        manhattan = StageAttention(attention, heads, head_width(dim, heads), span, axial)
        super().__init__(dim, heads)
        self.attention = manhattan
        if attention != 'naive':
            accelerate(self)
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        dim = self.q_proj.in_features
        if x.ndim != 4 or x.shape[-1] != dim:
            raise ValueError(
                f'(B, H, W, {dim}) wanted, not {tuple(x.shape)}: channels come last, tokens lie '
                'on a grid (a sequence of H * W: x.unflatten(1, (H, W)))'
            )
        if torch.compiler.is_compiling():
            let_inductor_order_symbols()
        return super().forward(x, self.attention.prepare(x))

    def extra_repr(self) -> str:
        return ', '.join(f'{name}={value!r}' for name, value in vars(self.attention).items())
