"""Manhattan self-attention on a GPU: FlexAttention with the decay computed on the fly, in float32.

It needs Triton and a GPU of compute capability 8 or more; :mod:`backbone.retention` falls back to
PyTorch's fused attention elsewhere. Compiled once for all sizes. Not compiled (on a CPU) it writes
the scores out: there it serves to prove that it computes the same.
"""

import importlib.util
from functools import cache

import torch
from torch import Tensor

HEAD_DIMS = (16, 32, 64, 128)


_able_devices: tuple[int, ...] | None = None


def look_for_devices() -> None:
    """Find the GPUs that compile FlexAttention, once; a compiler could not look while it traces."""
    global _able_devices
    if _able_devices is None:
        visible = range(torch.cuda.device_count() if importlib.util.find_spec('triton') else 0)
        _able_devices = tuple(i for i in visible if torch.cuda.get_device_capability(i) >= (8, 0))


def available(device: torch.device, head_dim: int) -> bool:
    """Whether FlexAttention compiles for this device and width of a head."""
    if device.type != 'cuda' or head_dim not in HEAD_DIMS:
        return False
    look_for_devices()
    return (device.index or 0) in _able_devices


@cache
def _flex_attention(compiled: bool):
    # not imported before it is needed: it takes torch's compiler along, seconds
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


def attention(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, columns: Tensor) -> Tensor:
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
