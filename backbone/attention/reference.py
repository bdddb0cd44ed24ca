"""``naive``: the formula as it stands (paper, section 3.2). It writes out every score."""

import torch
from torch import Tensor

from .positions import Tables, cos_sin, line_decay, rotate


def supports(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why it cannot run there; it always can."""
    return ''


def tables(head_dim: int, rates: Tensor, H: int, W: int, axial: bool, dtype: torch.dtype) -> Tables:
    """Cosines, sines, and the decay.

    Axial: ``rate * |dw|`` in a row (n, W, W) and ``rate * |dh|`` in a column (n, H, H). Whole:
    ``rate * (|dh| + |dw|)`` between all places (n, L, L).
    """
    cos, sin = cos_sin(head_dim, H, W, rates.device)
    rows, cols = line_decay(rates, H), line_decay(rates, W)
    if axial:
        return cos, sin, cols, rows
    decay = rows[:, :, None, :, None] + cols[:, None, :, None, :]  # (n, H, W, H, W)
    return cos, sin, decay.reshape(-1, H * W, H * W)


def attend(q: Tensor, k: Tensor, v: Tensor, tables: Tables, axial: bool) -> Tensor:
    """Whole: every place to every place. Axial: inside each row, its result inside each column."""
    cos, sin, *decay = tables
    shape = q.shape
    q, k = rotate(q, cos, sin), rotate(k * q.shape[-1] ** -0.5, cos, sin)
    if not axial:
        q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # (B, n, L, d)
        return softmax_attention(q, k, v, *decay).transpose(1, 2).reshape(shape)
    row_decay, col_decay = decay
    q, k, v = (t.transpose(2, 3) for t in (q, k, v))  # (B, H, n, W, d)
    v = softmax_attention(q, k, v, row_decay)
    q, k, v = (t.permute(0, 3, 2, 1, 4) for t in (q, k, v))  # (B, W, n, H, d)
    v = softmax_attention(q, k, v, col_decay)
    return v.permute(0, 3, 1, 2, 4)  # (B, H, W, n, d)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """``softmax(q k^T + decay) v`` over the second last axis; q k v (..., length, d)."""
    scores = q @ k.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) + decay
    return scores.softmax(dim=-1).to(v.dtype) @ v
