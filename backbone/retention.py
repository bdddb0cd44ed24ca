"""Manhattan self-attention (MaSA; paper, section 3.2) and its implementations.

B batch, H W the stage's grid, L = H * W tokens, C channels, n heads, d = C / n channels a head.
Queries, keys and values are (B, H, W, n, d) everywhere. Angles and decays are float32 whatever the
model's dtype: positions reach 64,000, which half precision cannot tell apart.

An implementation is a pair of functions: ``tables`` makes what depends on the grid alone, once a
stage; ``attend`` turns queries and keys by their position and computes the attention. All
implementations of a kind compute the same thing; ``naive`` is the formula as it stands.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import flex, kernel

Tables = tuple[Tensor, ...]


class Implementation(NamedTuple):
    """One way to compute the attention of a stage.

    ``tables(d, rates, H, W)`` from the width of a head and the heads' decay rates (n,);
    ``attend(q, k, v, *tables) -> (B, H, W, n, d)``.
    """

    tables: Callable[[int, Tensor, int, int], Tables]
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


def naive_turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Turned queries, and turned keys scaled with d ** -0.5."""
    return rotate(q, cos, sin), rotate(k * q.shape[-1] ** -0.5, cos, sin)


def naive_whole_tables(d: int, rates: Tensor, H: int, W: int) -> Tables:
    """Cosines, sines and the decay between all places, ``rate * (|dh| + |dw|)``, (n, L, L)."""
    rows, cols = line_decay(rates, H), line_decay(rates, W)
    decay = rows[:, :, None, :, None] + cols[:, None, :, None, :]  # (n, H, W, H, W)
    return *rotary_tables(d, H, W, rates.device), decay.reshape(-1, H * W, H * W)


def naive_whole(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, decay: Tensor) -> Tensor:
    """Attention of every place to every place (paper, MaSA)."""
    shape = q.shape
    q, k = naive_turn(q, k, cos, sin)
    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # (B, n, L, d)
    return softmax_attention(q, k, v, decay).transpose(1, 2).reshape(shape)


def naive_axial_tables(d: int, rates: Tensor, H: int, W: int) -> Tables:
    """Cosines, sines, ``rate * |dw|`` in a row (n, W, W), ``rate * |dh|`` in a column (n, H, H)."""
    return *rotary_tables(d, H, W, rates.device), line_decay(rates, W), line_decay(rates, H)


def naive_axial(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, row_decay: Tensor, col_decay: Tensor
) -> Tensor:
    """Attention inside each row, its result then inside each column (decomposed MaSA)."""
    q, k = naive_turn(q, k, cos, sin)
    q, k, v = (t.transpose(2, 3) for t in (q, k, v))  # (B, H, n, W, d)
    v = softmax_attention(q, k, v, row_decay)
    q, k, v = (t.permute(0, 3, 2, 1, 4) for t in (q, k, v))  # (B, W, n, H, d)
    v = softmax_attention(q, k, v, col_decay)
    return v.permute(0, 3, 1, 2, 4)  # (B, H, W, n, d)


# --- fused ---------------------------------------------------------------------------------------
# PyTorch's fused attention never writes the scores out. On a CPU it takes a mask only in four
# dimensions; with any other it falls back to the formula.


def fused_attention(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(d) + decay) v``; q k v (batch, n, length, d)."""
    if q.dtype != decay.dtype and q.device.type != 'cpu':  # only a CPU takes another dtype's mask
        return fused_attention(q.float(), k.float(), v.float(), decay).to(v.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=decay)


def complex_turns(d: int, H: int, W: int, device: torch.device) -> Tensor:
    """cos + i sin of the angle at each place of the grid, (H, W, 1, d / 2)."""
    return torch.complex(*rotary_tables(d, H, W, device))


def fused_turn(x: Tensor, turns: Tensor) -> Tensor:
    """:func:`rotate` as one product of complex numbers, without temporaries; same dtype."""
    if torch.compiler.is_compiling():  # the compiler fuses the formula and knows no complex numbers
        return rotate(x, *torch.view_as_real(turns).unbind(-1))
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


def fused_axial_tables(d: int, rates: Tensor, H: int, W: int) -> Tables:
    """Turns, ``rate * |dw|`` in a row (n, W, W), ``rate * |dh|`` in a column (n, H, H)."""
    turns = complex_turns(d, H, W, rates.device)
    return turns, line_decay(rates, W), line_decay(rates, H)


def fused_axial(
    q: Tensor, k: Tensor, v: Tensor, turns: Tensor, row_decay: Tensor, col_decay: Tensor
) -> Tensor:
    """Attention inside each row, its result then attended inside each column."""
    B, H, W, _, _ = q.shape
    q, k = fused_turn(q, turns), fused_turn(k, turns)
    rows = (t.flatten(0, 1).transpose(1, 2) for t in (q, k, v))  # (B H, n, W, d)
    v = fused_attention(*rows, row_decay[None]).transpose(1, 2).unflatten(0, (B, H))
    cols = (t.transpose(1, 2).flatten(0, 1).transpose(1, 2) for t in (q, k, v))  # (B W, n, H, d)
    out = fused_attention(*cols, col_decay[None]).transpose(1, 2).unflatten(0, (B, W))
    return out.transpose(1, 2)  # (B, H, W, n, d)


def toeplitz_tables(d: int, rates: Tensor, H: int, W: int) -> Tables:
    """Turns, and the decay of all places as windows of one small table, (H, n, W, L).

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
    windows = table.as_strided((H, n, W, H * W), (W, W * row, row, 1))
    return complex_turns(d, H, W, rates.device), windows


def fused_whole(q: Tensor, k: Tensor, v: Tensor, turns: Tensor, windows: Tensor) -> Tensor:
    """Attention of every place to every place, the rows of queries as a batch."""
    _, H, W, n, d = q.shape
    q, k = fused_turn(q, turns), fused_turn(k, turns)
    outputs = []
    for qi, ki, vi in zip(q.flip(1), k, v, strict=True):  # one image: (H, W, n, d)
        ki, vi = (t.reshape(1, H * W, n, d).transpose(1, 2).expand(H, -1, -1, -1) for t in (ki, vi))
        out = fused_attention(qi.transpose(1, 2), ki, vi, windows)  # (H, n, W, d)
        outputs.append(out.transpose(1, 2))
    return torch.stack(outputs).flip(1)


# --- the kernel ----------------------------------------------------------------------------------


def kernel_tables(d: int, rates: Tensor, H: int, W: int) -> Tables:
    """Cosines and sines in the kernel's form, and the rates: it computes the decay as it goes."""
    return *kernel.rotary_tables(*rotary_tables(d, H, W, rates.device)), rates


def kernel_whole(q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> Tensor:
    """Attention of every place to every place."""
    return kernel.attention(q.float(), k.float(), v.float(), *tables, kernel.WHOLE)[0].to(v.dtype)


def kernel_axial(q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> Tensor:
    """Attention inside each row, its result then attended inside each column."""
    dtype, q, k, v = v.dtype, q.float(), k.float(), v.float()
    v, _ = kernel.attention(q, k, v, *tables, kernel.ROWS)
    if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return kernel.attention_(q, k, v, *tables, kernel.COLUMNS).to(dtype)
    return kernel.attention(q, k, v, *tables, kernel.COLUMNS)[0].to(dtype)


# --- on a GPU ------------------------------------------------------------------------------------


def flex_tables(d: int, rates: Tensor, H: int, W: int) -> Tables:
    """Turns, the rates, and the lengths of a row and of a column."""
    lengths = torch.tensor([W, H], device=rates.device)
    return complex_turns(d, H, W, rates.device), rates, lengths


def flex_whole(q: Tensor, k: Tensor, v: Tensor, turns: Tensor, rates: Tensor, lengths: Tensor):
    """Attention of every place to every place."""
    q, k = fused_turn(q, turns), fused_turn(k, turns)
    heads = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # (B, n, L, d)
    return flex.attention(*heads, rates, lengths[0]).transpose(1, 2).unflatten(1, q.shape[1:3])


def flex_axial(q: Tensor, k: Tensor, v: Tensor, turns: Tensor, rates: Tensor, lengths: Tensor):
    """Attention inside each row, its result then attended inside each column."""
    B, H, W, _, _ = q.shape
    q, k = fused_turn(q, turns), fused_turn(k, turns)
    rows = (t.flatten(0, 1).transpose(1, 2) for t in (q, k, v))  # (B H, n, W, d)
    v = flex.attention(*rows, rates, lengths[0]).transpose(1, 2).unflatten(0, (B, H))
    cols = (t.transpose(1, 2).flatten(0, 1).transpose(1, 2) for t in (q, k, v))  # (B W, n, H, d)
    out = flex.attention(*cols, rates, lengths[1]).transpose(1, 2).unflatten(0, (B, W))
    return out.transpose(1, 2)  # (B, H, W, n, d)


# --- the choice ----------------------------------------------------------------------------------

WHOLE = {
    'naive': Implementation(naive_whole_tables, naive_whole),
    'fused': Implementation(toeplitz_tables, fused_whole),
    'kernel': Implementation(kernel_tables, kernel_whole),
    'flex': Implementation(flex_tables, flex_whole),
}
AXIAL = {
    'naive': Implementation(naive_axial_tables, naive_axial),
    'fused': Implementation(fused_axial_tables, fused_axial),
    'kernel': Implementation(kernel_tables, kernel_axial),
    'flex': Implementation(flex_tables, flex_axial),
}


def fastest(choices: dict[str, Implementation], device: torch.device, d: int) -> Implementation:
    """What is quickest on a device; a model does not know its device when it is built."""
    if device.type == 'cpu':
        # the kernel's graph is compiled anew for each size
        quick = kernel.available if not torch.compiler.is_compiling() else bool
        return choices['kernel' if quick() else 'fused']
    return choices['flex' if device.type == 'cuda' and flex.available(device, d) else 'fused']


def auto_tables(choices: dict, d: int, rates: Tensor, H: int, W: int) -> Tables:
    """The tables of the fastest implementation."""
    return fastest(choices, rates.device, d).tables(d, rates, H, W)


def auto_attend(choices: dict, q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> Tensor:
    """The attention of the fastest implementation."""
    return fastest(choices, q.device, q.shape[-1]).attend(q, k, v, *tables)


def auto_whole_tables(*args) -> Tables:
    return auto_tables(WHOLE, *args)


def auto_whole(*args) -> Tensor:
    return auto_attend(WHOLE, *args)


def auto_axial_tables(*args) -> Tables:
    return auto_tables(AXIAL, *args)


def auto_axial(*args) -> Tensor:
    return auto_attend(AXIAL, *args)


WHOLE['auto'] = Implementation(auto_whole_tables, auto_whole)
AXIAL['auto'] = Implementation(auto_axial_tables, auto_axial)


def get_implementation(name: str, axial: bool) -> Implementation:
    """The implementation ``name`` of axial or whole attention; ``auto`` is the fastest there is.

    Raises:
        ValueError: an unknown name; the message lists the choices.
        RuntimeError: ``kernel`` where it cannot be compiled.
    """
    choices = AXIAL if axial else WHOLE
    if name not in choices:
        raise ValueError(f'attention {name!r} is unknown; choose from {", ".join(choices)}')
    compiled = name in ('auto', 'kernel') and kernel.available()  # now, not in the first pass
    if name == 'auto':
        flex.look_for_devices()
    if name == 'kernel' and not compiled:
        raise RuntimeError("attention 'kernel' needs a C++ compiler (g++) here; use 'auto'")
    return choices[name]


# --- the cache -----------------------------------------------------------------------------------

CACHED_TABLES = 16  # four stages of four sizes
CACHED_BYTES = 64 * 2**20  # of one entry; the plain formula's decay is beyond it

_cache: OrderedDict[tuple, Tables] = OrderedDict()
_cache_lock = threading.Lock()


def stage_tables(
    implementation: Implementation,
    d: int,
    n: int,
    span: float,
    H: int,
    W: int,
    device: torch.device,
) -> Tables:
    """An implementation's tables for an H x W grid, made anew or kept from an earlier call.

    Under a compiler, and for tensors without storage, they are always made anew: they belong to the
    graph. They never require a gradient and serve training also when inference made them.
    """
    if torch.compiler.is_compiling() or type(torch.empty(0, device=device)) is not Tensor:
        return implementation.tables(d, decay_rates(n, span, device), H, W)
    key = (implementation.tables, d, n, span, H, W, device)
    with _cache_lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    with torch.inference_mode(False), torch.no_grad():
        tables = implementation.tables(d, decay_rates(n, span, device), H, W)
    if sum(t.untyped_storage().nbytes() for t in tables) <= CACHED_BYTES:
        with _cache_lock:
            _cache[key] = tables
            while len(_cache) > CACHED_TABLES:
                _cache.popitem(last=False)
    return tables
