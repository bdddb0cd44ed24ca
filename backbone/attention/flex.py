"""``flex``: FlexAttention on a GPU, the decay computed on the fly, in float32.

Compiled for any size, some times over (:data:`GRAPHS`). Not compiled (on a CPU) it writes the
scores out: there it serves to prove that it computes the same.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from . import triton
from .lines import rows_then_columns
from .positions import Tables, complex_turns, rotate_complex

HEAD_DIMS = (16, 32, 64, 128)
GRAPHS = 64
"""How often it may be compiled: a training with its evaluations needs some 25 (PyTorch guards on a
batch of one, modes, short lines), and past PyTorch's own limit of 8 every score is written out."""


def supports(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why it cannot run there, '' where it can."""
    if device.type == 'cpu':
        return ''
    if head_dim not in HEAD_DIMS:
        return f'a head has {head_dim} channels, it takes {", ".join(map(str, HEAD_DIMS))}'
    return triton.problem(device)  # PyTorch makes Triton kernels of it


def tables(head_dim: int, rates: Tensor, H: int, W: int, axial: bool, dtype: torch.dtype) -> Tables:
    """Turns, the rates, and the lengths of a row and of a column."""
    lengths = torch.tensor([W, H], device=rates.device)
    return complex_turns(head_dim, H, W, rates.device), rates, lengths


def attend(q: Tensor, k: Tensor, v: Tensor, tables: Tables, axial: bool) -> Tensor:
    """Whole: every place to every place. Axial: inside each row, its result inside each column."""
    turns, rates, lengths = tables
    q, k = rotate_complex(q, turns), rotate_complex(k, turns)
    if axial:
        lines = (partial(decayed_attention, rates=rates, columns=length) for length in lengths)
        return rows_then_columns(q, k, v, *lines)
    places = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # (B, n, L, d)
    out = decayed_attention(*places, rates, lengths[0])
    return out.transpose(1, 2).unflatten(1, q.shape[1:3])


def decayed_attention(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, columns: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(d) + decay) v``; q k v (batch, n, length, d), already turned.

    ``columns`` is the width of the grid that the length runs over row by row, a tensor of one
    integer: as a plain number each width would be compiled anew.
    """

    def decayed(score, _, head, i, j):
        rows_apart = torch.abs(i // columns - j // columns)
        columns_apart = torch.abs(i % columns - j % columns)
        return score + rates[head] * (rows_apart + columns_apart)

    attend = _flex_attention(q.is_cuda and not torch.compiler.is_compiling())
    return attend(q, k, v, score_mod=decayed)


@cache
def _flex_attention(compiled: bool) -> Callable:
    # not imported before it is needed: it takes torch's compiler along, seconds
    from torch.nn.attention.flex_attention import flex_attention

    if not compiled:
        return flex_attention
    graphs = torch.compile(flex_attention, dynamic=True)
    config = torch._dynamo.config
    limit = 'recompile_limit' if hasattr(config, 'recompile_limit') else 'cache_size_limit'  # 2.6

    def attend(*tensors: Tensor, **options: Callable) -> Tensor:
        with config.patch(limit, GRAPHS):
            return graphs(*tensors, **options)

    return attend
