"""``fused``: PyTorch's scaled_dot_product_attention, which never writes the scores out.

On a CPU it takes a mask only in four dimensions, of any strides; with another it falls back to the
formula. On a GPU its memory-efficient kernel takes a mask of the queries' dtype alone, whose
strides but the last are multiples of 8; anything else is copied first, or left to the formula.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .lines import rows_then_columns
from .positions import Tables, complex_turns, line_decay, rotate_complex

ALIGNED = 8
MASK_BYTES = 2**30
"""On a GPU: whole attention whose mask would be larger goes in chunks of rows of queries."""


def supports(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why it cannot run there; it always can."""
    return ''


def tables(head_dim: int, rates: Tensor, H: int, W: int, axial: bool, dtype: torch.dtype) -> Tables:
    """Turns, and the decay: on a CPU in float32, elsewhere :func:`masks`.

    For queries in float64 it is in float64 too: PyTorch reads a mask of float32 wrongly there.
    Axial: ``rate * |dw|`` in a row (1, n, W, W) and ``rate * |dh|`` in a column (1, n, H, H).
    Whole: the windows of :func:`toeplitz_windows`.
    """
    turns = complex_turns(head_dim, H, W, rates.device)
    if rates.device.type != 'cpu':
        return turns, *masks(rates, H, W, axial, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    if axial:
        return turns, line_decay(rates, W)[None].to(wide), line_decay(rates, H)[None].to(wide)
    return turns, toeplitz_windows(toeplitz_table(rates, H, W).to(wide))


def masks(rates: Tensor, H: int, W: int, axial: bool, dtype: torch.dtype) -> Tables:
    """The decay as a GPU's kernel takes it: in the queries' dtype, aligned.

    Whole: between all places (1, n, L, L), made once a stage; where that would be too large, the
    table it is made of, (1, n, W, 2H - 1, W).
    """
    if axial:
        return aligned(line_decay(rates, W)[None], dtype), aligned(
            line_decay(rates, H)[None], dtype
        )
    table = toeplitz_table(rates, H, W)
    if mask_bytes(rates.numel(), H * W, H * W, dtype) > MASK_BYTES:
        return (table[None],)
    return (mask_of_rows(table, range(H), dtype),)


# --- masks ---------------------------------------------------------------------------------------


def toeplitz_table(rates: Tensor, H: int, W: int) -> Tensor:
    """``table[m, wq, D + H - 1, wk] = rate * (|wq - wk| + |D|)``, D in (-H, H); (n, W, 2H - 1, W).

    D = hk - hq: for a row of queries h, the rows of keys are the H entries from H - 1 - h on.
    """
    offset = torch.arange(1 - H, H, dtype=torch.float32, device=rates.device).abs()
    cols = line_decay(rates, W)  # (n, W, W)
    return cols[:, :, None, :] + rates[:, None, None, None] * offset[:, None]


def toeplitz_windows(table: Tensor) -> Tensor:
    """The decay between all places as windows of :func:`toeplitz_table`, (H, n, W, L).

    With the query rows in reverse order, row r = H - 1 - h starts at entry r of the table, so all
    windows are one view of positive strides. It holds n W (2H - 1) W numbers instead of n L L.
    """
    n, W, entries, _ = table.shape
    H, row = (entries + 1) // 2, entries * W
    return table.as_strided((H, n, W, H * W), (W, W * row, row, 1))


def mask_of_rows(table: Tensor, rows: range, dtype: torch.dtype) -> Tensor:
    """The decay from some rows of queries to all places, (1, n, rows W, L), aligned."""
    n, W, entries, _ = table.shape
    H = (entries + 1) // 2
    mask = _aligned_empty((1, n, len(rows) * W, H * W), dtype, table.device)
    by_row = mask.unflatten(2, (len(rows), W))
    for place, h in enumerate(rows):
        by_row[:, :, place] = table[:, :, H - 1 - h : 2 * H - 1 - h].flatten(2)
    return mask


def aligned(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """``mask`` in ``dtype``, its last axis one of a memory whose rows are a multiple of 8 long."""
    return _aligned_empty(mask.shape, dtype, mask.device).copy_(mask)


def _aligned_empty(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    length = shape[-1]
    padded = length + -length % ALIGNED
    return torch.empty(*shape[:-1], padded, dtype=dtype, device=device)[..., :length]


def mask_bytes(heads: int, queries: int, keys: int, dtype: torch.dtype) -> int:
    return heads * queries * (keys + -keys % ALIGNED) * dtype.itemsize


# --- attention -----------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, tables: Tables, axial: bool) -> Tensor:
    """Whole: rows of queries as a batch, or all at once. Axial: the rows, then the columns."""
    turns, *decay = tables
    q, k = rotate_complex(q, turns), rotate_complex(k, turns)
    if axial:
        lines = (partial(masked_attention, decay=each) for each in decay)
        return rows_then_columns(q, k, v, *lines)
    (decay,) = decay
    if decay.ndim == 5:
        return in_chunks(q, k, v, decay[0])
    return (at_once if decay.shape[2] == decay.shape[3] else by_rows)(q, k, v, decay)


def by_rows(q: Tensor, k: Tensor, v: Tensor, windows: Tensor) -> Tensor:
    """Whole attention of q k v (B, H, W, n, d), an image at a time, its rows a batch."""
    _, H, W, n, d = q.shape
    outputs = []
    for qi, ki, vi in zip(q.flip(1), k, v, strict=True):  # one image: (H, W, n, d)
        ki, vi = (t.reshape(1, H * W, n, d).transpose(1, 2).expand(H, -1, -1, -1) for t in (ki, vi))
        out = masked_attention(qi.transpose(1, 2), ki, vi, windows)  # (H, n, W, d)
        outputs.append(out.transpose(1, 2))
    return torch.stack(outputs).flip(1)


def at_once(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Whole attention of q k v (B, H, W, n, d) with one mask (1, n, L, L)."""
    places = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # (B, n, L, d)
    return masked_attention(*places, mask).transpose(1, 2).unflatten(1, q.shape[1:3])


def in_chunks(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """Whole attention of q k v (B, H, W, n, d), a mask for each chunk of rows of queries."""
    _, H, W, n, _ = q.shape
    rows = max(1, MASK_BYTES // mask_bytes(n, W, H * W, q.dtype))
    k, v = (t.flatten(1, 2).transpose(1, 2) for t in (k, v))  # (B, n, L, d)

    def chunk(q: Tensor, k: Tensor, v: Tensor, first: int) -> Tensor:
        mask = mask_of_rows(table, range(first, min(first + rows, H)), q.dtype)
        queries = q.flatten(1, 2).transpose(1, 2)  # (B, n, rows W, d)
        return masked_attention(queries, k, v, mask).transpose(1, 2)

    # masks kept for the backward pass would be as large as one for all: they are made again there
    run = partial(checkpoint, use_reentrant=False) if torch.is_grad_enabled() else _call
    parts = [run(chunk, q[:, i : i + rows], k, v, i) for i in range(0, H, rows)]
    return torch.cat(parts, dim=1).unflatten(1, (H, W))


def _call(function: Callable, *arguments: object) -> object:
    return function(*arguments)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(d) + decay) v``; q k v (batch, n, length, d)."""
    decay = decay.expand(q.shape[0], *decay.shape[1:])
    with _efficient(q.device):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=decay)


def _efficient(device: torch.device) -> AbstractContextManager:
    """On a GPU the memory-efficient kernel; cuDNN's would plan anew for each size."""
    if device.type != 'cuda':
        return nullcontext()
    # not imported before it is needed: it takes torch's compiler along
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
