"""Axial attention by any function that attends along one axis: rows first, then columns."""

from collections.abc import Callable

from torch import Tensor

LineAttention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q k v (batch, n, length, d) -> the same shape."""


def rows_then_columns(
    q: Tensor, k: Tensor, v: Tensor, along_row: LineAttention, along_column: LineAttention
) -> Tensor:
    """Attention of q k v (B, H, W, n, d) inside each row, its result then inside each column."""
    B, H, W, _, _ = q.shape
    rows = (t.flatten(0, 1).transpose(1, 2) for t in (q, k, v))  # (B H, n, W, d)
    v = along_row(*rows).transpose(1, 2).unflatten(0, (B, H))
    cols = (t.transpose(1, 2).flatten(0, 1).transpose(1, 2) for t in (q, k, v))  # (B W, n, H, d)
    out = along_column(*cols).transpose(1, 2).unflatten(0, (B, W))
    return out.transpose(1, 2)  # (B, H, W, n, d)
