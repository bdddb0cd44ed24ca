"""``fused``: PyTorch's scaled_dot_product_attention, which never writes the scores out.

On a CPU it takes a mask only in four dimensions; with any other it falls back to the formula.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .lines import rows_then_columns
from .positions import Tables, complex_turns, line_decay, rotate_complex


def supports(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why it cannot run there; it always can."""
    return ''


def tables(head_dim: int, rates: Tensor, H: int, W: int, axial: bool) -> Tables:
    """Turns, and the decay.

    Axial: ``rate * |dw|`` in a row (1, n, W, W) and ``rate * |dh|`` in a column (1, n, H, H).
    Whole: the windows of :func:`toeplitz_windows`.
    """
    turns = complex_turns(head_dim, H, W, rates.device)
    if axial:
        return turns, line_decay(rates, W)[None], line_decay(rates, H)[None]
    return turns, toeplitz_windows(rates, H, W)


def toeplitz_windows(rates: Tensor, H: int, W: int) -> Tensor:
    """The decay between all places as windows of one small table, (H, n, W, L).

    ``table[m, wq, D + H - 1, wk] = rate * (|wq - wk| + |D|)`` with D = hk - hq in (-H, H).
    The keys of query row h read the H entries of D from -h on: with the query rows in reverse
    order, row r = H - 1 - h starts at entry r, so all windows are one view of positive strides.
    It holds n W (2H - 1) W numbers instead of n L L.
    """
    n = rates.numel()
    offset = torch.arange(1 - H, H, dtype=torch.float32, device=rates.device).abs()
    cols = line_decay(rates, W)  # (n, W, W)
    table = cols[:, :, None, :] + rates[:, None, None, None] * offset[:, None]  # (n, W, 2H - 1, W)
    row = (2 * H - 1) * W
    return table.as_strided((H, n, W, H * W), (W, W * row, row, 1))


def attend(q: Tensor, k: Tensor, v: Tensor, tables: Tables, axial: bool) -> Tensor:
    """Whole: the rows of queries as a batch. Axial: the rows, then the columns, as a batch."""
    turns, *decay = tables
    q, k = rotate_complex(q, turns), rotate_complex(k, turns)
    if axial:
        lines = (partial(masked_attention, decay=each) for each in decay)
        return rows_then_columns(q, k, v, *lines)
    _, H, W, n, d = q.shape
    outputs = []
    for qi, ki, vi in zip(q.flip(1), k, v, strict=True):  # one image: (H, W, n, d)
        ki, vi = (t.reshape(1, H * W, n, d).transpose(1, 2).expand(H, -1, -1, -1) for t in (ki, vi))
        out = masked_attention(qi.transpose(1, 2), ki, vi, *decay)  # (H, n, W, d)
        outputs.append(out.transpose(1, 2))
    return torch.stack(outputs).flip(1)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(d) + decay) v``; q k v (batch, n, length, d)."""
    if q.dtype != decay.dtype and q.device.type != 'cpu':  # only a CPU takes another dtype's mask
        return masked_attention(q.float(), k.float(), v.float(), decay).to(v.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=decay)
