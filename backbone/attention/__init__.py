"""Manhattan self-attention (MaSA; paper, section 3.2): its implementations and the choice of one.

B batch, H W the stage's grid, L = H * W tokens, n heads, d channels a head. Queries, keys and
values are (B, H, W, n, d) everywhere; queries and keys come unturned and unscaled.

An implementation is a module with three functions; all compute the same, ``naive`` as it stands:

- ``supports(device, dtype, head_dim) -> str``: why it cannot run there, '' where it can;
- ``tables(head_dim, rates, H, W, axial, dtype) -> Tables``: what depends on the grid and on
  the dtype of queries alone;
- ``attend(q, k, v, tables, axial) -> Tensor``: the attention, whole or along rows and columns.
"""

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from mmengine.logging import print_log
from torch import Tensor

from ..kernels import build
from ..kernels.compiled import is_exporting
from . import cpu, flex, reference, sdpa, self_check, triton
from .positions import Tables, decay_rates, holds_numbers

IMPLEMENTATIONS = {
    'naive': reference,
    'fused': sdpa,
    'kernel': cpu,
    'triton': triton,
    'flex': flex,
}
FASTEST = {'cpu': ('kernel', 'fused'), 'cuda': ('triton', 'fused')}
"""What ``auto`` tries, best first, by kind of device; the last runs everywhere. Else ``fused``."""
CHECKED = ('triton',)
"""What ``auto`` takes only after a self-check on the device; by name it is taken as it is."""
ANY_SIZE = ('triton', 'fused')
"""What ``auto`` takes under a compiler: one graph of it serves every size."""

NAMES = (*IMPLEMENTATIONS, 'auto')


@dataclass(frozen=True)
class StageAttention:
    """The attention of one stage, which all its blocks share. Has no weights.

    Attributes:
        name: one of :data:`NAMES`; ``auto`` is the fastest that can run where the tensors are.
        heads: how many, each with a decay rate of its own.
        head_dim: channels a head.
        span: of the heads' decay rates.
        axial: along rows and columns instead of whole.

    Raises:
        ValueError: an unknown name; the message lists the choices, and why one cannot run here. A
            span that is negative or no number.
        RuntimeError: a name that cannot run on any device of this machine.
    """

    name: str
    heads: int
    head_dim: int
    span: float
    axial: bool

    def __post_init__(self) -> None:
        here = torch.device('cpu'), torch.float32, self.head_dim
        if self.name not in NAMES:
            reasons = {name: each.supports(*here) for name, each in IMPLEMENTATIONS.items()}
            choices = (
                f'{name} (not here: {why})' if why else name for name, why in reasons.items()
            )
            raise ValueError(
                f'attention {self.name!r} is unknown; choose from {", ".join(choices)}, auto'
            )
        if not 0 <= self.span < math.inf:
            raise ValueError(f'span {self.span}: choose a number from 0 on')
        if self.name == 'kernel':
            choose(self.name, *here)  # compiled now, not in the first pass

    def prepare(self, x: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The function ``(q, k, v) -> out`` for the grid, device and dtype of x (B, H, W, C)."""
        B, H, W, _ = x.shape
        if not B:
            return nothing
        kind = x.device.type
        amp = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if amp else x.dtype
        compiler = torch.compiler.is_compiling(), is_exporting()
        chosen = self.choice(x.device, dtype, *compiler)
        tables = grid_tables(
            chosen, self.head_dim, self.heads, self.span, H, W, self.axial, x.device, dtype
        )
        return partial(IMPLEMENTATIONS[chosen].attend, tables=tables, axial=self.axial)

    def choice(
        self, device: torch.device, dtype: torch.dtype, compiling: bool, exporting: bool
    ) -> str:
        """:func:`choose` for this stage."""
        return choose(self.name, device, dtype, self.head_dim, compiling, exporting)

    # called while a compiler traces, not traced: it looks at the machine, and checks there. It is
    # what torch.compiler.assume_constant_result sets, which imports the compiler for it
    choice._dynamo_marked_constant = True


def head_width(channels: int, heads: int) -> int:
    """Channels d of each head.

    Raises:
        ValueError: the heads do not divide the channels into even parts.
    """
    if heads < 1 or channels < 1 or channels % (2 * heads):
        raise ValueError(
            f'heads: {channels} channels over {heads} heads: a head needs an even width, '
            'its channels are turned in pairs'
        )
    return channels // heads


def nothing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The attention of no image: empty like each, and for the backward pass made of all."""
    return q + k + v


# --- the choice ----------------------------------------------------------------------------------

_told: set[tuple[str, str, str]] = set()


def choose(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    compiling: bool = False,
    exporting: bool = False,
) -> str:
    """The implementation that runs: ``name`` itself, or what ``auto`` picks for the device.

    Raises:
        RuntimeError: an implementation chosen by name cannot run there; the message says why.
    """
    if name == 'auto':
        candidates = ('fused',) if exporting else FASTEST.get(device.type, ('fused',))
        if compiling:
            candidates = tuple(each for each in candidates if each in ANY_SIZE)
        return _fastest(candidates, device, dtype, head_dim)
    reason = '' if exporting else IMPLEMENTATIONS[name].supports(device, dtype, head_dim)
    if reason:
        raise RuntimeError(f"attention {name!r} cannot run here: {reason}; use 'auto'")
    return name


def _fastest(
    candidates: tuple[str, ...], device: torch.device, dtype: torch.dtype, head_dim: int
) -> str:
    passed_over = ''
    for candidate in candidates:
        reason = _reason_against(candidate, device, dtype, head_dim)
        if not reason:
            break
        passed_over += f' ({candidate}: {reason})'
    _tell(device, candidate, passed_over)
    return candidate


def _reason_against(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why ``auto`` does not take an implementation there, '' where it does."""
    implementation = IMPLEMENTATIONS[name]
    reason = implementation.supports(device, dtype, head_dim)
    if not reason and name in CHECKED:
        reason = self_check.problem(implementation, device, dtype, head_dim)
    return reason


def _tell(device: torch.device, chosen: str, passed_over: str) -> None:
    """Log a choice, once a process and device."""
    line = str(device), chosen, passed_over
    if line not in _told:
        _told.add(line)
        # what is absent is told; what is here and wrong is worth a warning
        level = logging.WARNING if self_check.FAILS in passed_over else logging.INFO
        print_log(f'RMT attention on {device}: {chosen}{passed_over}', 'current', level)


# --- the tables ----------------------------------------------------------------------------------

CACHED_BYTES = 256 * 2**20
"""Of all tables kept. One grid's take at most a quarter, so that there is room for four stages; the
plain formula's decay at full size takes more and is made anew."""

_cache: OrderedDict[tuple, Tables] = OrderedDict()
_cache_lock = threading.Lock()


def grid_tables(
    name: str,
    head_dim: int,
    heads: int,
    span: float,
    H: int,
    W: int,
    axial: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Tables:
    """An implementation's tables for an H x W grid, made anew or kept from an earlier call.

    See :func:`kept_tables`.
    """

    def make() -> Tables:
        rates = decay_rates(heads, span, device)
        return IMPLEMENTATIONS[name].tables(head_dim, rates, H, W, axial, dtype)

    return kept_tables(make, device, name, head_dim, heads, span, H, W, axial, dtype)


def kept_tables(make: Callable[[], Tables], device: torch.device, *key: object) -> Tables:
    """What ``make`` gives, made anew or kept from an earlier call with the same device and key.

    Under a compiler or a tracer, and for tensors without storage, they are always made anew: they
    belong to the graph. They never require a gradient and serve training also when inference made
    them.
    """
    recorded = torch.compiler.is_compiling() or build.escaped()
    if recorded or not holds_numbers(device):
        return make()
    key = device, *key
    with _cache_lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    with torch.inference_mode(False), torch.no_grad():
        tables = make()
    if _bytes(tables) <= CACHED_BYTES / 4:
        with _cache_lock:
            _cache[key] = tables
            while sum(map(_bytes, _cache.values())) > CACHED_BYTES:
                _cache.popitem(last=False)
    return tables


def _bytes(tables: Tables) -> int:
    return sum(t.untyped_storage().nbytes() for t in tables)
