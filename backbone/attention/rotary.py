"""Attention of queries and keys turned by row and column, without decay: RAVLT's and MAViT's.

Their last two stages attend by softmax, which stands here; their first two by a sum that is linear
in the places, each family's own. A way to compute one is a function of q k v (B, H, W, n, d) and
the tables of the grid; of every attention there are two, by :data:`NAMES`.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import build
from . import IMPLEMENTATIONS, kept_tables, nothing
from .positions import Tables, rotate, rotate_complex, row_column_cos_sin

NAMES = ('naive', 'fused', 'auto')
"""The formula as it stands, with its scores written out; without them; the best, which is fused."""

Way = Callable[[Tensor, Tensor, Tensor, Tables], Tensor]


@dataclass(frozen=True)
class RotaryAttention:
    """The attention of one stage, which all its blocks share. Has no weights.

    Attributes:
        name: one of :data:`NAMES`.
        head_dim: channels a head; a multiple of 4.
        ways: how it is computed, 'naive' and 'fused'.

    Raises:
        ValueError: an unknown name; the message lists the choices.
    """

    name: str
    head_dim: int
    ways: Mapping[str, Way]

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            others = ', '.join(name for name in IMPLEMENTATIONS if name not in NAMES)
            raise ValueError(
                f'attention {self.name!r} is unknown; choose from {", ".join(NAMES)} '
                f'({others}: of attention with a decay, which is RMT)'
            )

    def prepare(self, x: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The function ``(q, k, v) -> out`` for the grid and device of x (B, H, W, C)."""
        B, H, W, _ = x.shape
        if not B:
            return nothing
        chosen = 'naive' if self.name == 'naive' else 'fused'
        real = chosen == 'naive' or torch.compiler.is_compiling()

        def make() -> Tables:
            cos_sin = row_column_cos_sin(self.head_dim, H, W, x.device)
            return cos_sin if real else (torch.complex(*cos_sin),)

        tables = kept_tables(make, x.device, 'rotary', self.head_dim, H, W, real)
        return functools.partial(self.ways[chosen], tables=tables)


def turn(x: Tensor, tables: Tables) -> Tensor:
    """Queries or keys turned by their place, in a new tensor.

    Args:
        tables: cosines and sines, or the complex numbers that they are of.
    """
    return rotate(x, *tables) if len(tables) == 2 else rotate_complex(x, *tables)


def by_head(x: Tensor) -> Tensor:
    """(B, H, W, n, d) -> (B, n, L, d)."""
    return x.flatten(1, 2).transpose(1, 2)


def on_grid(x: Tensor, like: Tensor) -> Tensor:
    """(B, n, L, d) -> (B, H, W, n, d), the shape of ``like``."""
    return x.transpose(1, 2).unflatten(1, like.shape[1:3])


# --- softmax -------------------------------------------------------------------------------------


def softmax_as_written(q: Tensor, k: Tensor, v: Tensor, tables: Tables) -> Tensor:
    """Over all places: softmax(R(q) R(k)^T / sqrt(d)) v."""
    queries, keys, values = (by_head(t) for t in (turn(q, tables), turn(k, tables), v))
    scores = queries @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, n, L, L)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return on_grid(weights.to(values.dtype) @ values, v)


def softmax(q: Tensor, k: Tensor, v: Tensor, tables: Tables) -> Tensor:
    """The same by PyTorch, which never holds the scores."""
    queries, keys, values = (by_head(t) for t in (turn(q, tables), turn(k, tables), v))
    return on_grid(F.scaled_dot_product_attention(queries, keys, values), v)


SOFTMAX = {'naive': softmax_as_written, 'fused': softmax}


# --- what linear attention needs -----------------------------------------------------------------


def feature(x: Tensor) -> Tensor:
    """What stands for queries and keys, ``ELU(x) + 1``: positive."""
    if torch.compiler.is_compiling():
        # one graph lays out what ELU's backward pass gives otherwise than the operator (2.13)
        return x.clamp(max=0).exp() + x.relu()
    return F.elu(x).add_(1)


SLAB_BYTES = 2**21
"""Of the queries that are taken at once on a CPU, where no gradients are computed: what is made of
them is never whole and stays in the cache."""


def slabs(x: Tensor) -> list[slice]:
    """The rows of a grid that are taken at once, all of them in turn; x (B, H, W, n, d)."""
    H = x.shape[1]
    recorded = torch.compiler.is_compiling() or build.escaped()
    if recorded or torch.is_grad_enabled() or x.device.type != 'cpu':
        return [slice(0, H)]
    rows = max(1, SLAB_BYTES // (x[:, :1].numel() * x.element_size()))
    return [slice(top, min(top + rows, H)) for top in range(0, H, rows)]


def rows_of(tables: Tables, rows: slice) -> Tables:
    """The tables of some rows of the grid."""
    return tuple(table[rows] for table in tables)


def in_slabs(way: Callable[[Tensor, Tables], Tensor], q: Tensor, tables: Tables) -> Tensor:
    """What ``way`` makes of queries (B, H, W, n, d), slab by slab."""
    first, *others = slabs(q)
    if not others:
        return way(q, tables)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for rows in (first, *others):
        out[:, rows] = way(q[:, rows], rows_of(tables, rows))
    return out


def in_float32(way: Way) -> Way:
    """The same with its sums in float32, or float64, also of halves and under autocast.

    A sum goes over all places of an image, 64,000 and more: float16 ends at 65,504.
    """

    @functools.wraps(way)
    def attend(q: Tensor, k: Tensor, v: Tensor, tables: Tables) -> Tensor:
        wide = torch.promote_types(v.dtype, torch.float32)
        with _without_autocast(v.device.type):
            return way(q.to(wide), k.to(wide), v.to(wide), tables).to(v.dtype)

    return attend


def _without_autocast(kind: str) -> AbstractContextManager:
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
