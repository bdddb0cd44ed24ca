"""What attention knows of places: angles, decay, and turning queries and keys by their position.

B batch, H W the stage's grid, n heads, d channels a head. All tables are float32 whatever the
model's dtype or the default one: positions reach 64,000, which half precision cannot tell apart.
"""

import torch
from torch import Tensor

Tables = tuple[Tensor, ...]
"""What depends on the grid alone; each implementation has its own."""


def holds_numbers(device: torch.device) -> bool:
    """Whether a tensor made there now is a real one, not one of a shape alone (fake tensors)."""
    return type(torch.empty(0, device=device)) is Tensor


def rotary_angles(head_dim: int, device: torch.device | None = None) -> Tensor:
    """Angle of each pair of channels per position step, (d / 2,)."""
    exponents = torch.linspace(0, 1, head_dim // 2, dtype=torch.float32, device=device)
    return 1.0 / 10000**exponents


def decay_rates(heads: int, span: float, device: torch.device | None = None) -> Tensor:
    """Decay of each head per step of distance, ``log(1 - 2**(-2 - span * m / n))``, (n,)."""
    m = torch.arange(heads, dtype=torch.float32, device=device)
    return torch.log(1 - 2 ** (-2 - span * m / heads))


def cos_sin(
    head_dim: int, H: int, W: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angle at each place of the grid, two (H, W, 1, d / 2).

    The position is the row-major index h * W + w, one number for both axes.
    """
    position = torch.arange(H * W, dtype=torch.float32, device=device).view(H, W, 1, 1)
    angle = position * rotary_angles(head_dim, device)
    return angle.cos(), angle.sin()


def row_column_cos_sin(
    head_dim: int, H: int, W: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """The same where the first half of the pairs turns by the row, the other by the column.

    Each half has the angles of a head of half the width.
    """
    h, w = (torch.arange(size, dtype=torch.float32, device=device) for size in (H, W))
    step = rotary_angles(head_dim // 2, device)  # (d / 4,)
    rows = (h[:, None, None, None] * step).expand(H, W, 1, -1)
    columns = (w[:, None, None] * step).expand(H, W, 1, -1)
    angle = torch.cat((rows, columns), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn adjacent channel pairs of (B, H, W, n, d): (a, b) -> (a cos - b sin, b cos + a sin)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    a, b = wide.unflatten(-1, (-1, 2)).unbind(-1)  # each (B, H, W, n, d / 2)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to(x.dtype)


def complex_turns(head_dim: int, H: int, W: int, device: torch.device) -> Tensor:
    """cos + i sin of the angle at each place of the grid, (H, W, 1, d / 2)."""
    return torch.complex(*cos_sin(head_dim, H, W, device))


def rotate_complex(x: Tensor, turns: Tensor) -> Tensor:
    """:func:`rotate` as one product of complex numbers, without temporaries; same dtype."""
    if torch.compiler.is_compiling():  # the compiler fuses the formula and knows no complex numbers
        return rotate(x, *torch.view_as_real(turns).unbind(-1))
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


def line_decay(rates: Tensor, length: int) -> Tensor:
    """``rate * |i - j|`` along one axis, (n, length, length)."""
    i = torch.arange(length, dtype=torch.float32, device=rates.device)
    return rates[:, None, None] * (i[:, None] - i[None, :]).abs()
