"""Manhattan self-attention (MaSA; paper, section 3.2) and its implementations.

B batch, H W the stage's grid, L = H * W tokens, C channels, n heads, d = C / n channels a head.
Queries, keys and values are (B, H, W, n, d) everywhere. Angles and decays are float32 whatever the
model's dtype: positions reach 64,000, which half precision cannot tell apart.

An implementation is a pair of functions: ``decay`` makes a stage's tables for a grid, ``attend`` uses them.
All implementations of a kind compute the same thing; ``naive`` is the formula as it stands.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
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


def rotary_tables(head_dim: int, H: int, W: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angle at each place of the grid, two (H, W, 1, d / 2).

    The position is the row-major index h * W + w, one number for both axes.
    """
    position = torch.arange(H * W, dtype=torch.float32, device=device).view(H, W, 1, 1)
    angle = position * rotary_angles(head_dim, device)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn adjacent channel pairs (a, b) -> (a cos - b sin, b cos + a sin); (B, H, W, n, d), same dtype."""
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
    """Attention inside each row, its result then attended inside each column (paper, equation 7)."""
    q, k, v = (t.transpose(2, 3) for t in (q, k, v))  # (B, H, n, W, d)
    v = softmax_attention(q, k, v, row_decay)
    q, k, v = (t.permute(0, 3, 2, 1, 4) for t in (q, k, v))  # (B, W, n, H, d)
    v = softmax_attention(q, k, v, col_decay)
    return v.permute(0, 3, 1, 2, 4)  # (B, H, W, n, d)


WHOLE = {'naive': Implementation(naive_whole_decay, naive_whole)}
AXIAL = {'naive': Implementation(axial_decay, naive_axial)}


def get_implementation(name: str, axial: bool) -> Implementation:
    """The implementation called ``name`` for axial or whole attention; an unknown name lists the choices."""
    choices = AXIAL if axial else WHOLE
    if name not in choices:
        raise ValueError(f'attention {name!r} is unknown; choose from {", ".join(choices)}')
    return choices[name]
