"""``kernel``: our C++ kernel for CPUs (``kernels/csrc/attention.cpp``), as operators of PyTorch.

It computes the decay as it goes, in float32, and keeps no score. Keys too far away to count, by
their decay, are left out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from ..kernels import build
from .positions import Tables, cos_sin

EVERYWHERE, IN_ROWS, IN_COLUMNS = range(3)
"""The kernel's modes: a place attends to all places, to those of its row, of its column."""

TABLE_STEP = 16
"""A row of the kernel's tables of angles is a multiple of this (``csrc/attention.cpp``)."""


def supports(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why it cannot run there, '' where it can; compiles it at the first call."""
    if device.type != 'cpu':
        return f'runs on a CPU, not on {device}'
    if build.escaped():
        return 'has no part in a trace, in torch.func or in forward-mode differentiation'
    return build.problem()


def tables(head_dim: int, rates: Tensor, H: int, W: int, axial: bool, dtype: torch.dtype) -> Tables:
    """Cosines and sines (H, W, width), and the rates.

    Each angle stands twice, once a channel, the first sine of a pair negative; zeros fill up.
    """
    cos, sin = cos_sin(head_dim, H, W, rates.device)
    fill = (0, -head_dim % TABLE_STEP)
    pairs = torch.stack((cos, cos), dim=-1), torch.stack((-sin, sin), dim=-1)
    return *(F.pad(t.flatten(-3), fill).contiguous() for t in pairs), rates


def attend(q: Tensor, k: Tensor, v: Tensor, tables: Tables, axial: bool) -> Tensor:
    """Whole: every place to every place. Axial: inside each row, its result inside each column."""
    dtype, q, k, v = v.dtype, q.float(), k.float(), v.float()
    if not axial:
        return attention(q, k, v, *tables, EVERYWHERE)[0].to(dtype)
    v, _ = attention(q, k, v, *tables, IN_ROWS)
    if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return attention_in_place(q, k, v, *tables, IN_COLUMNS).to(dtype)
    return attention(q, k, v, *tables, IN_COLUMNS)[0].to(dtype)


@torch.library.custom_op('rmt::attention', mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, rates: Tensor, mode: int
) -> tuple[Tensor, Tensor]:
    """Manhattan self-attention of q k v (B, H, W, n, d), float32, unturned and unscaled.

    ``cos``, ``sin`` and ``rates`` come from :func:`tables`. Returns the result (B, H, W, n, d) and,
    for the backward pass, log2 of each query's softmax denominator.
    """
    q, k, v = (t.contiguous() for t in (q, k, v))
    check(q, k, v, cos, sin, rates, mode)
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:-1].numel())
    if q.numel():
        build.call('rmt_forward', [q, k, v, cos, sin, rates, out, lse], *q.shape, mode, False)
    return out, lse


def attention_in_place(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, rates: Tensor, mode: int
) -> Tensor:
    """:func:`attention` without gradients, inside rows or columns, in the memory of v.

    A task has read its row or column before it writes there.
    """
    q, k = q.contiguous(), k.contiguous()
    check(q, k, v, cos, sin, rates, mode)
    lse = q.new_empty(q.shape[:-1].numel())
    with record_function('rmt::attention_in_place'):  # no operator: a profiler would not see it
        if q.numel():
            build.call('rmt_forward', [q, k, v, cos, sin, rates, v, lse], *q.shape, mode, True)
    return v


@attention.register_fake
def _(q, k, v, cos, sin, rates, mode):
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1].numel())


@torch.library.custom_op('rmt::attention_backward', mutates_args=())
def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    rates: Tensor,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    mode: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`attention`'s q, k and v; computes the scores again."""
    q, k, v, out, grad = (t.contiguous() for t in (q, k, v, out, grad))
    check(q, k, v, cos, sin, rates, mode)
    build.check_shapes(out=(out, q.shape), grad=(grad, q.shape), lse=(lse, (q.shape[:-1].numel(),)))
    grads = torch.empty_like(q), torch.empty_like(q), torch.empty_like(q)
    if q.numel():
        tensors = [q, k, v, cos, sin, rates, out, lse, grad, *grads]
        build.call('rmt_backward', tensors, *q.shape, mode)
    return grads


@attention_backward.register_fake
def _(q, k, v, cos, sin, rates, out, lse, grad, mode):
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.mode = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    return *attention_backward(*ctx.saved_tensors, grad, ctx.mode), None, None, None, None


attention.register_autograd(_backward, setup_context=_setup_context)


def check(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, rates: Tensor, mode: int
) -> None:
    """Whether the tensors fit each other.

    Raises:
        ValueError: a size that the kernel would read or write beyond, or an unknown mode.
    """
    if q.ndim != 5 or q.shape[-1] % 2:
        raise ValueError(f'q: (B, H, W, n, d) with an even d wanted, not {tuple(q.shape)}')
    if mode not in (EVERYWHERE, IN_ROWS, IN_COLUMNS):
        raise ValueError(f'mode {mode}: choose from 0 (everywhere), 1 (rows), 2 (columns)')
    _, H, W, n, d = q.shape
    angles = (H, W, d + -d % TABLE_STEP)
    build.check_shapes(
        k=(k, q.shape), v=(v, q.shape), cos=(cos, angles), sin=(sin, angles), rates=(rates, (n,))
    )
