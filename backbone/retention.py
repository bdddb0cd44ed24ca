"""Manhattan self-attention (MaSA; paper, section 3.2) and its implementations.

B batch, H W the stage's grid, L = H * W tokens, C channels, n heads, d = C / n channels a head.
Queries, keys and values are (B, H, W, n, d) everywhere. Angles and decays are float32 whatever the
model's dtype: positions reach 64,000, which half precision cannot tell apart.

An implementation is a pair of functions: ``decay`` makes a stage's tables for a grid, ``attend``
uses them.
All implementations of a kind compute the same thing; ``naive`` is the formula as it stands.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Implementation(NamedTuple):
    """One way to compute the attention of a stage.

    ``decay(rates, H, W) -> tables`` from the heads' decay rates (n,);
    ``attend(q, k, v, *tables) -> (B, H, W, n, d)``.
    """

    decay: Callable[..., tuple[Tensor, ...]]
    attend: Callable[..., Tensor]


# --- positions -----------------------------------------------------------------------------------


def rotary_angles(head_dim: int, device: torch.device | None = None) -> Tensor:
    """Angle of each pair of channels per position step, (d / 2,)."""
    return 1.0 / 10000 ** torch.linspace(0, 1, head_dim // 2, device=device)


def decay_rates(heads: int, span: float, device: torch.device | None = None) -> Tensor:
    """Decay of each head per step of distance, ``log(1 - 2**(-2 - span * m / n))``, (n,)."""
    m = torch.arange(heads, dtype=torch.float32, device=device)
    return torch.log(1 - 2 ** (-2 - span * m / heads))


def rotary_tables(
    head_dim: int, H: int, W: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angle at each place of the grid, two (H, W, 1, d / 2).

    The position is the row-major index h * W + w, one number for both axes.
    """
    position = torch.arange(H * W, dtype=torch.float32, device=device).view(H, W, 1, 1)
    angle = position * rotary_angles(head_dim, device)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn adjacent channel pairs of (B, H, W, n, d): (a, b) -> (a cos - b sin, b cos + a sin)."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # each (B, H, W, n, d / 2)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to(x.dtype)


def line_decay(rates: Tensor, length: int) -> Tensor:
    """``rate * |i - j|`` along one axis, (n, length, length)."""
    i = torch.arange(length, dtype=torch.float32, device=rates.device)
    return rates[:, None, None] * (i[:, None] - i[None, :]).abs()


# --- the formula ---------------------------------------------------------------------------------


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """``softmax(q k^T + decay) v`` over the second last axis; q k v (..., length, d)."""
    scores = (q @ k.transpose(-1, -2)).float() + decay
    return scores.softmax(dim=-1).to(v.dtype) @ v


def naive_whole_decay(rates: Tensor, H: int, W: int) -> tuple[Tensor]:
    """``rate * (|dh| + |dw|)`` between all places, (n, L, L)."""
    rows, cols = line_decay(rates, H), line_decay(rates, W)
    decay = rows[:, :, None, :, None] + cols[:, None, :, None, :]  # (n, H, W, H, W)
    return (decay.reshape(-1, H * W, H * W),)


def naive_whole(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """Attention of every place to every place (paper, equation 6)."""
    shape = q.shape
    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # (B, n, L, d)
    return softmax_attention(q, k, v, decay).transpose(1, 2).reshape(shape)


def axial_decay(rates: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
    """``rate * |dw|`` inside a row, (n, W, W), and ``rate * |dh|`` inside a column, (n, H, H)."""
    return line_decay(rates, W), line_decay(rates, H)


def naive_axial(q: Tensor, k: Tensor, v: Tensor, row_decay: Tensor, col_decay: Tensor) -> Tensor:
    """Attention inside each row, its result then attended inside each column (equation 7)."""
    q, k, v = (t.transpose(2, 3) for t in (q, k, v))  # (B, H, n, W, d)
    v = softmax_attention(q, k, v, row_decay)
    q, k, v = (t.permute(0, 3, 2, 1, 4) for t in (q, k, v))  # (B, W, n, H, d)
    v = softmax_attention(q, k, v, col_decay)
    return v.permute(0, 3, 1, 2, 4)  # (B, H, W, n, d)


# --- fused ---------------------------------------------------------------------------------------
# PyTorch's fused attention never writes the scores out. On a CPU it takes a mask only in four
# dimensions; with any other it falls back to the formula.


def fused_attention(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """``softmax(q k^T + decay) v``; q k v (batch, n, length, d)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=decay, scale=1.0)


def fused_axial(q: Tensor, k: Tensor, v: Tensor, row_decay: Tensor, col_decay: Tensor) -> Tensor:
    """Attention inside each row, its result then attended inside each column."""
    B, H, W, _, _ = q.shape
    rows = (t.flatten(0, 1).transpose(1, 2) for t in (q, k, v))  # (B H, n, W, d)
    v = fused_attention(*rows, row_decay[None]).transpose(1, 2).unflatten(0, (B, H))
    cols = (t.transpose(1, 2).flatten(0, 1).transpose(1, 2) for t in (q, k, v))  # (B W, n, H, d)
    out = fused_attention(*cols, col_decay[None]).transpose(1, 2).unflatten(0, (B, W))
    return out.transpose(1, 2)  # (B, H, W, n, d)


def toeplitz_decay(rates: Tensor, H: int, W: int) -> tuple[Tensor]:
    """The decay of all places as windows of one small table, (H, n, W, L).

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
    return (table.as_strided((H, n, W, H * W), (W, W * row, row, 1)),)


def fused_whole(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """Attention of every place to every place, the rows of queries as a batch."""
    _, H, W, n, d = q.shape
    outputs = []
    for qi, ki, vi in zip(q.flip(1), k, v, strict=True):  # one image: (H, W, n, d)
        ki, vi = (t.reshape(1, H * W, n, d).transpose(1, 2).expand(H, -1, -1, -1) for t in (ki, vi))
        out = fused_attention(qi.transpose(1, 2), ki, vi, decay)  # (H, n, W, d)
        outputs.append(out.transpose(1, 2))
    return torch.stack(outputs).flip(1)


WHOLE = {
    'naive': Implementation(naive_whole_decay, naive_whole),
    'fused': Implementation(toeplitz_decay, fused_whole),
}
AXIAL = {
    'naive': Implementation(axial_decay, naive_axial),
    'fused': Implementation(axial_decay, fused_axial),
}
WHOLE['auto'], AXIAL['auto'] = WHOLE['fused'], AXIAL['fused']


def get_implementation(name: str, axial: bool) -> Implementation:
    """The implementation ``name`` of axial or whole attention.

    Raises:
        ValueError: an unknown name; the message lists the choices.
    """
    choices = AXIAL if axial else WHOLE
    if name not in choices:
        raise ValueError(f'attention {name!r} is unknown; choose from {", ".join(choices)}')
    return choices[name]
