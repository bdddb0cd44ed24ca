"""``triton``: our kernels for NVIDIA GPUs (``kernels/triton_attention.py``), as one operator.

Compiled at the first call of a process, once for all sizes. They compute the decay as they go, in
float32, and keep no score. With ``TRITON_INTERPRET=1`` in the environment, set before anything
imports Triton, they run on a CPU too, slowly: a proof, not a way to work.
"""

import importlib.util
import math
import os
import shutil
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

from ..kernels.build import check_shapes
from ..kernels.compiled import is_exporting
from .positions import Tables, cos_sin

LEAST_CAPABILITY = (8, 0)  # tensor cores for bfloat16
WIDEST_HEAD = 128
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PAD = 64  # of the tables; kernels/triton_attention.py has it too, which imports Triton


def supports(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why it cannot run there, '' where it can."""
    if head_dim % 2 or head_dim > WIDEST_HEAD:
        return f'a head has {head_dim} channels, it takes an even number up to {WIDEST_HEAD}'
    if dtype not in DTYPES:
        return f'takes float32, float16 and bfloat16, not {dtype}'.replace('torch.', '')
    return problem(device)


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter."""
    return os.environ.get('TRITON_INTERPRET', '0').lower() in ('1', 'true', 'on', 'yes', 'y')


def problem(device: torch.device) -> str:
    """Why the kernels cannot run on a device, '' where they can."""
    if importlib.util.find_spec('triton') is None:
        return 'the package triton is not installed'
    if device.type == 'cpu' and interpreted():
        return ''
    if device.type != 'cuda':
        aside = " (in Triton's interpreter: TRITON_INTERPRET=1)" if device.type == 'cpu' else ''
        return f'runs on CUDA GPUs, not on {device.type}{aside}'
    if torch.version.hip:
        return 'compiles for CUDA, this is ROCm'
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        return f'there is no {device}'
    found = torch.cuda.get_device_capability(index)
    if found < LEAST_CAPABILITY:
        found, least = ('.'.join(map(str, c)) for c in (found, LEAST_CAPABILITY))
        return f'{device} has compute capability {found}, it takes {least}'
    named = os.environ.get('CC')
    if not any(map(shutil.which, [named] if named else ['gcc', 'clang'])):
        missing = f'{named} (CC) was not found' if named else 'gcc, clang, or what CC names'
        return f'needs a C compiler: {missing}'
    if not Path(sysconfig.get_path('include'), 'Python.h').exists():
        return "needs Python's C headers (Python.h)"
    return ''


def tables(head_dim: int, rates: Tensor, H: int, W: int, axial: bool, dtype: torch.dtype) -> Tables:
    """Turns (H W, d), cosine and sine of each pair in turn; rates to base 2; places.

    Places (2, P): the row and the column of each token where attention is whole, 0, 1, 2 ... of a
    row and of a column where it is axial; infinity beyond, up to a multiple of PAD.
    """
    turns = torch.stack(cos_sin(head_dim, H, W, rates.device), dim=-1).reshape(H * W, head_dim)
    lengths = (W, H) if axial else (H * W, H * W)
    size = -(-(H + W if axial else H * W) // PAD) * PAD
    i = torch.arange(size, device=rates.device)
    numbers = (i, i) if axial else (i // W, i % W)
    places = [
        number.to(torch.float32).masked_fill(i >= length, math.inf)
        for number, length in zip(numbers, lengths, strict=True)
    ]
    return turns, rates * math.log2(math.e), torch.stack(places)


def attend(q: Tensor, k: Tensor, v: Tensor, tables: Tables, axial: bool) -> Tensor:
    """Whole: every place to every place. Axial: inside each row, its result inside each column."""
    if is_exporting():
        raise RuntimeError("attention 'triton' cannot be exported; build with attention='fused'")
    return attention(q.to(v.dtype), k.to(v.dtype), v, *tables, axial)[0]


# --- the operator --------------------------------------------------------------------------------


@torch.library.custom_op('rmt::triton_attention', mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, turns: Tensor, rates: Tensor, places: Tensor, axial: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Manhattan self-attention of q k v (B, H, W, n, d), unturned and unscaled.

    Returns the result and what the backward pass needs: q and k turned (2, B, H, W, n, d), the
    result of the rows (empty where attention is whole), and log2 of the softmax's sums.
    """
    from ..kernels import triton_launch as launch
    from ..kernels.triton_tiles import COLUMNS, ROWS, WHOLE, precision_of

    check(q, k, v, turns, rates, places, axial)
    out, turned, between, sums = _results(q, axial)
    launch.turn(q, k, turns, *turned)
    precision = precision_of(q.dtype, interpreted())
    if axial:
        in_rows, in_columns = sums.split(_sums(q, axial))
        launch.forward(*turned, v, between, in_rows, rates, places[0], ROWS, precision)
        launch.forward(*turned, between, out, in_columns, rates, places[1], COLUMNS, precision)
    else:
        launch.forward(*turned, v, out, sums, rates, places, WHOLE, precision)
    return out, turned, between, sums


@attention.register_fake
def _(q, k, v, turns, rates, places, axial):
    return _results(q, axial)


@torch.library.custom_op('rmt::triton_attention_backward', mutates_args=())
def attention_backward(
    grad: Tensor,
    v: Tensor,
    out: Tensor,
    turned: Tensor,
    between: Tensor,
    sums: Tensor,
    turns: Tensor,
    rates: Tensor,
    places: Tensor,
    axial: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`attention`'s q, k and v; computes the scores again."""
    from ..kernels import triton_launch as launch
    from ..kernels.triton_tiles import COLUMNS, ROWS, WHOLE, precision_of

    delta = _empty(sums, sums.shape)
    grad_q, grad_k, grad_v = (_empty(out, out.shape) for _ in range(3))
    precision = precision_of(out.dtype, interpreted())

    def backward(mode, v, out, sums, grad, delta, grad_v, places):
        launch.backward(
            *(*turned, v, out, sums, grad, delta, grad_q, grad_k, grad_v, rates, places, turns),
            mode=mode,
            precision=precision,
        )

    if not axial:
        backward(WHOLE, v, out, sums, grad, delta, grad_v, places)
        return grad_q, grad_k, grad_v
    (rows, columns), (d_rows, d_columns) = (t.split(_sums(out, axial)) for t in (sums, delta))
    grad_between = _empty(out, out.shape)
    backward(COLUMNS, between, out, columns, grad, d_columns, grad_between, places[1])
    backward(ROWS, v, between, rows, grad_between, d_rows, grad_v, places[0])
    return grad_q, grad_k, grad_v


@attention_backward.register_fake
def _(grad, v, out, turned, between, sums, turns, rates, places, axial):
    return out.new_empty(out.shape), out.new_empty(out.shape), out.new_empty(out.shape)


def _setup_context(ctx, inputs, output) -> None:
    _, _, v, *tables, ctx.axial = inputs
    ctx.save_for_backward(v, *output, *tables)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, *_):
    return *attention_backward(grad, *ctx.saved_tensors, ctx.axial), None, None, None, None


attention.register_autograd(_backward, setup_context=_setup_context)


def _sums(q: Tensor, axial: bool) -> list[int]:
    """How many sums there are, a whole number of PADs an item: of rows and of columns."""
    B, H, W, n, _ = q.shape
    items = ((B * H * n, W), (B * W * n, H)) if axial else ((B * n, H * W),)
    return [count * (-(-length // PAD) * PAD) for count, length in items]


def _results(q: Tensor, axial: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    between = q.shape if axial else (0,)
    sums = _empty(q, (sum(_sums(q, axial)),), torch.float32)
    return _empty(q, q.shape), _empty(q, (2, *q.shape)), _empty(q, between), sums


def _empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    return like.new_empty(shape, dtype=dtype)


def check(
    q: Tensor, k: Tensor, v: Tensor, turns: Tensor, rates: Tensor, places: Tensor, axial: bool
) -> None:
    """Whether the tensors fit each other.

    Raises:
        ValueError: a kernel would read or write beyond one, or take it for what it is not.
    """
    if q.ndim != 5:
        raise ValueError(f'q: (B, H, W, n, d) wanted, not {tuple(q.shape)}')
    _, H, W, n, d = q.shape
    size = -(-(H + W if axial else H * W) // PAD) * PAD
    check_shapes(k=(k, q.shape), v=(v, q.shape), turns=(turns, (H * W, d)), rates=(rates, (n,)))
    check_shapes(places=(places, (2, size)))
    for name, t in dict(k=k, v=v).items():
        if (t.dtype, t.device) != (q.dtype, q.device):
            raise ValueError(f'{name} is {t.dtype} on {t.device}, q is {q.dtype} on {q.device}')
    for name, t in dict(turns=turns, rates=rates, places=places).items():
        if t.dtype != torch.float32 or t.device != q.device or not t.is_contiguous():
            raise ValueError(f'{name}: contiguous float32 on {q.device} wanted')
