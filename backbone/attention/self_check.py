"""Whether an implementation computes right on a device: found out there, at its first use.

A kernel that is compiled where it runs meets cards, drivers and toolkits that nobody has tried. So
``auto`` takes it only after it has given the formula's results on a small odd grid, forward and
backward, whole and along rows and columns. What cannot be caught is a write out of bounds, which
ends the use of the GPU in this process: ``tools/check_gpu.py`` does the same in a process aside.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from types import ModuleType

import torch
from torch import Tensor

from . import reference
from .positions import decay_rates, holds_numbers

GRID, HEADS, SPAN = (5, 77), 2, 4

LIMITS = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""How far a result may be from the formula in float64: the norm of the difference, relative."""

FAILS = 'its self-check fails'

SWITCH = 'RMT_TRITON'
"""``RMT_TRITON=off`` in the environment keeps ``auto`` from what is checked here."""

_verdicts: dict[tuple[str, torch.device, torch.dtype, int], str] = {}
_lock = threading.Lock()


def problem(
    implementation: ModuleType, device: torch.device, dtype: torch.dtype, head_dim: int
) -> str:
    """Why its results cannot be relied on there, '' where they can; computes once a process.

    Where nothing can be computed, under fake tensors or while a CUDA graph is captured, that is a
    reason too; it is not kept for later.
    """
    if os.environ.get(SWITCH, '').lower() in ('off', '0', 'no', 'false'):
        return f'switched off by {SWITCH}'
    key = implementation.__name__, device, dtype, head_dim
    with _lock:
        if key in _verdicts:
            return _verdicts[key]
        if _is_capturing(device) or not holds_numbers(device):
            return 'not checked yet, and nothing can be computed here'
        try:
            found = list(deviations(implementation, device, dtype, head_dim, GRID))
            wrong = [f'{what} is off by {error:.1e}' for what, error in found
                     if not error <= LIMITS[dtype]]  # a NaN is wrong  # fmt: skip
            reason = '; '.join(wrong[:3])
        except Exception as error:  # noqa: BLE001  (whatever a compiler or a driver raises)
            line = next(iter(str(error).splitlines()), '')[:200]
            reason = f'{type(error).__name__}: {line}'
        _verdicts[key] = reason and f'{FAILS}: {reason}'
        return _verdicts[key]


def _is_capturing(device: torch.device) -> bool:
    return device.type == 'cuda' and torch.cuda.is_current_stream_capturing()


def deviations(
    implementation: ModuleType,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    grid: tuple[int, int],
) -> Iterator[tuple[str, float]]:
    """What is compared, and how far it is from the formula: results and gradients of q, k, v.

    Random numbers come from a generator of its own: a training goes on as without the check.
    """
    shape = 2, *grid, HEADS, head_dim
    on_device = torch.cuda.device(device) if device.type == 'cuda' else nullcontext()
    as_written = torch.autocast(device.type, enabled=False)
    with on_device, torch.inference_mode(False), torch.enable_grad(), as_written:
        generator = torch.Generator().manual_seed(0)
        given = [torch.randn(shape, generator=generator, device='cpu').to(dtype) for _ in range(4)]
        rates = decay_rates(HEADS, SPAN, torch.device('cpu'))
        for axial in (False, True):
            truth = _results(reference, [t.double() for t in given], rates, axial)
            there = [t.to(device) for t in given]
            found = _results(implementation, there, rates.to(device), axial)
            kind = 'along rows and columns' if axial else 'everywhere'
            for what, ours, theirs in zip(('the result', *'qkv'), found, truth, strict=True):
                name = what if what == 'the result' else f'the gradient of {what}'
                distance = (ours.double().cpu() - theirs).norm() / theirs.norm()
                yield f'{name} {kind}', float(distance)


def _results(
    implementation: ModuleType, tensors: list[Tensor], rates: Tensor, axial: bool
) -> list[Tensor]:
    """The attention, and the gradients of its q, k, v."""
    *qkv, weight = tensors
    qkv = [t.detach().requires_grad_() for t in qkv]
    _, *grid, _, head_dim = weight.shape
    tables = implementation.tables(head_dim, rates, *grid, axial, weight.dtype)
    out = implementation.attend(*qkv, tables, axial)
    return [out.detach(), *torch.autograd.grad(out, qkv, weight)]
