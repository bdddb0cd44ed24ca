"""Launches of :mod:`.triton_attention`: how a grid falls into lines, and who writes where.

Results go into tensors that the caller made. Tensors of this project are contiguous
(B, H, W, n, d); v and gradients that arrive may have any strides but that of the channels.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from . import triton_attention as kernels
from .triton_attention import PAD
from .triton_tiles import ROWS, WHOLE, capability_of, constants, filled_up

LOG2_E = 1.4426950408889634


class Lines(NamedTuple):
    """How a grid falls into lines; places and steps count tokens.

    Line l begins at ``l // inner * outer + l % inner * across``; its tokens are ``along`` apart.
    """

    count: int
    length: int
    inner: int
    outer: int
    across: int
    along: int


def lines_of(mode: int, B: int, H: int, W: int) -> Lines:
    if mode == WHOLE:
        return Lines(B, H * W, 1, H * W, 0, 1)
    if mode == ROWS:
        return Lines(B * H, W, H, H * W, W, 1)
    return Lines(B * W, H, W, H * W, 1, W)


def pads(length: int) -> int:
    """How many times PAD the places and sums of a line take."""
    return -(-length // PAD)


# --- tensors of others ---------------------------------------------------------------------------


def readable(t: Tensor, mode: int) -> Tensor:
    """t itself, or a copy where its strides are more than a kernel can follow."""
    _, H, W, _, d = t.shape
    _, row, column, _, channel = t.stride()
    follows = channel == 1 or d == 1
    if mode == WHOLE and H > 1 and W > 1:
        follows = follows and row == W * column
    return t if follows else t.contiguous()


def strides(t: Tensor, mode: int) -> tuple[int, int, int, int]:
    """(outer, inner, token, head) of a readable tensor, in channels."""
    image, row, column, head = (
        s if size > 1 else 0 for s, size in zip(t.stride()[:4], t.shape[:4], strict=True)
    )
    if mode == WHOLE:
        return image, 0, column or row, head
    return (image, row, column, head) if mode == ROWS else (image, column, row, head)


def unit_of(d: int, *strides: int) -> int:
    """What all strides are counted in."""
    return 16 if all(s % 16 == 0 for s in (d, *strides)) else 1


def _on(device: torch.device) -> AbstractContextManager:
    return torch.cuda.device(device) if device.type == 'cuda' else nullcontext()


# --- launches ------------------------------------------------------------------------------------


def turn(q: Tensor, k: Tensor, turns: Tensor, q_out: Tensor, k_out: Tensor) -> None:
    """q and k turned by their places, k times log2(e) / sqrt(d) besides.

    Args:
        turns: (H W, d), float32, contiguous: cosine and sine of each pair of channels in turn.
    """
    B, H, W, n, d = q.shape
    q, k = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k))
    q_strides, k_strides = (t.stride()[:4] for t in (q, k))
    unit = unit_of(d, *q_strides, *k_strides)
    D = filled_up(d)
    M = 1024 // D
    if not q.numel():
        return
    with _on(q.device):
        kernels.turn_kernel[(-(-B * H * W // M),)](
            q,
            k,
            turns,
            q_out,
            k_out,
            d**-0.5 * LOG2_E,
            B * H * W,
            n,
            H,
            W,
            *(s // unit for s in (*q_strides, *k_strides)),
            d=d,
            D=D,
            UNIT=unit,
            M=M,
            num_warps=4,
        )


def forward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, rates: Tensor, places: Tensor,
    mode: int, precision: str,
) -> None:  # fmt: skip
    """Attention of turned q and k, along the lines of a mode.

    Args:
        sums: float32, a row of ``pads(length) * PAD`` an item; log2 of the softmax's sums.
        rates: (n,), float32, times log2(e).
        places: float32, of :func:`backbone.attention.triton.tables`, contiguous.
    """
    B, H, W, n, d = q.shape
    v = readable(v, mode)
    v_strides = strides(v, mode)
    unit = unit_of(d, *v_strides)
    count, length, *steps = lines_of(mode, B, H, W)
    gpu = capability_of(q.device)
    compiled = constants('forward', d, unit, q.dtype, mode, precision, gpu)
    if not q.numel():
        return
    with _on(q.device):
        kernels.forward_kernel[(-(-length // compiled['M']) * count * n,)](
            q,
            k,
            v,
            out,
            sums,
            rates,
            places,
            length,
            pads(length),
            n,
            *steps,
            *(s // unit for s in v_strides),
            **compiled,
        )


def backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, grad: Tensor, delta: Tensor,
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, rates: Tensor, places: Tensor, turns: Tensor,
    mode: int, precision: str,
) -> None:  # fmt: skip
    """Gradients of :func:`forward`'s q, k and v.

    Along columns those of q and k are of the turned ones. Along rows they are added to what is
    there, which the columns left, and like those of the whole turned back: they are of what
    :func:`turn` took.

    Args:
        delta: float32, like ``sums``, for the kernels' own use.
    """
    B, H, W, n, d = q.shape
    v, grad = readable(v, mode), readable(grad, mode)
    v_strides, g_strides = strides(v, mode), strides(grad, mode)
    unit = unit_of(d, *v_strides, *g_strides)
    count, length, *steps = lines_of(mode, B, H, W)
    numbers = (
        *(length, pads(length), n, *steps),
        *(s // unit for s in (*v_strides, *g_strides)),
    )
    gpu = capability_of(q.device)
    for_query, for_key = (
        constants(kernel, d, unit, q.dtype, mode, precision, gpu) for kernel in ('query', 'key')
    )
    if not q.numel():
        return
    items = count * n
    with _on(q.device):
        kernels.query_kernel[(-(-length // for_query['M']) * items,)](
            *(q, k, v, out, sums, grad, delta, grad_q, rates, places, turns), *numbers, **for_query
        )
        kernels.key_kernel[(-(-length // for_key['N']) * items,)](
            *(q, k, v, sums, grad, delta, grad_k, grad_v, rates, places, turns),
            d**-0.5,
            *numbers,
            **for_key,
        )
