"""Manhattan self-attention on a GPU: FlexAttention with the decay computed on the fly, in float32.

It needs Triton and a GPU of compute capability 8 or more; :mod:`backbone.retention` falls back to
PyTorch's fused attention elsewhere. Compiled once for all sizes. Not compiled (on a CPU) it writes
the scores out: there it serves to prove that it computes the same.
"""

import importlib.util
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention


@torch.compiler.assume_constant_result
@cache
def available(device: torch.device, head_dim: int) -> bool:
    """Whether FlexAttention compiles for this device and width of a head."""
    return (
        device.type == 'cuda'
        and head_dim in (16, 32, 64, 128)
        and importlib.util.find_spec('triton') is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


@cache
def _compiled():
    return torch.compile(flex_attention, dynamic=True)


def attention(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, columns: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(d) + decay) v``; q k v (batch, n, length, d), already turned.

    ``columns`` is the width of the grid that the length runs over row by row, a tensor of one
    integer: as a plain number each width would be compiled anew.
    """

    def decayed(score, _, head, i, j):
        rows_apart = torch.abs(i // columns - j // columns)
        columns_apart = torch.abs(i % columns - j % columns)
        return score + rates[head] * (rows_apart + columns_apart)

    compile_here = q.is_cuda and not torch.compiler.is_compiling()
    attend = _compiled() if compile_here else flex_attention
    return attend(q, k, v, score_mod=decayed)
