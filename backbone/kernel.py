"""The kernels for a CPU: compiles ``csrc/`` once, loads it, makes operators of it.

The compiled file is kept in the user's cache directory, named by what it depends on (the source,
the compiler, the processor), so that one home directory serves several machines. Where there is no
C++ compiler they are not available and the layers compute without them.
"""

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
import threading
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

WHOLE, ROWS, COLUMNS = range(3)
"""What attends to what: all places, the places of a row, the places of a column."""

SOURCES = sorted(Path(__file__).with_name('csrc').glob('*.[ch]*'))
FLAGS = ('-O3', '-march=native', '-std=c++17', '-fPIC', '-fopenmp')
_lock = threading.Lock()
_ready = False
_lanes = 8  # floats of a vector, once the kernel is loaded


def available() -> bool:
    """Whether the operator can run here; compiles it at the first call (some seconds, once)."""
    global _ready, _lanes
    if not _ready:
        with _lock:
            library = _library()
            if library is not None:
                library.rmt_depthwise_sums.restype = ctypes.c_int64
                _lanes = library.rmt_lanes()
            _ready = library is not None
    return _ready


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        return _load()
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, 'stderr', None) or str(error)
        print_log(
            f'RMT: no CPU kernels here, computing with PyTorch alone, slower: {reason}',
            logger='current',
            level=30,  # a warning
        )
        return None


def _load() -> ctypes.CDLL:
    compiler = os.environ.get('CXX', 'g++')
    name = f'kernel-{_fingerprint(compiler)}.so'
    folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'rmt-downstream'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable and not (folder / name).exists():
        folder = Path(tempfile.mkdtemp(prefix='rmt-downstream-'))  # compiled anew each time
    if not (folder / name).exists():
        _compile(compiler, folder / name)
    return ctypes.CDLL(str(folder / name), mode=os.RTLD_NOW)


def _fingerprint(compiler: str) -> str:
    version = subprocess.run([compiler, '--version'], capture_output=True, text=True, check=True)
    facts = [
        *(file.read_text() for file in SOURCES),
        *FLAGS,
        version.stdout,
        platform.machine(),
        torch.__version__,
    ]
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        facts += sorted({x for x in lines if x.startswith(('flags', 'Features', 'model name'))})
    return hashlib.sha256('\n'.join(facts).encode()).hexdigest()[:16]


def _compile(compiler: str, target: Path) -> None:
    print_log(f'RMT: compiling the CPU kernels, once, into {target}', logger='current')
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        linked = Path(work) / 'kernel.so'
        run = functools.partial(
            subprocess.run, cwd=work, capture_output=True, text=True, check=True
        )
        run([compiler, *FLAGS, '-c', *(str(file) for file in SOURCES if file.suffix == '.cpp')])
        # Linked without -fopenmp: the threads are those of the OpenMP that PyTorch has loaded. A
        # second one would compete with it for the cores.
        run(
            [
                compiler,
                '-shared',
                *sorted(p.name for p in Path(work).glob('*.o')),
                '-o',
                linked.name,
            ]
        )
        os.replace(linked, target)  # another process may have been quicker: the same file


def _call(name: str, tensors: list[Tensor | None], *numbers: int | ctypes.c_int64) -> None:
    pointers = [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]
    getattr(_library(), name)(*pointers, *numbers, torch.get_num_threads())


@torch.library.custom_op('rmt::attention', mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, rates: Tensor, mode: int
) -> tuple[Tensor, Tensor]:
    """Manhattan self-attention of q k v (B, H, W, n, d), float32, unturned and unscaled.

    ``cos`` and ``sin`` come from :func:`rotary_tables`. Returns the result (B, H, W, n, d) and, for
    the backward pass, log2 of each query's softmax denominator.
    """
    q, k, v = (t.contiguous() for t in (q, k, v))
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:-1].numel())
    _call('rmt_forward', [q, k, v, cos, sin, rates, out, lse], *q.shape, mode)
    return out, lse


def attention_(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, rates: Tensor, mode: int
) -> Tensor:
    """:func:`attention` without gradients, the result of ROWS or COLUMNS in the memory of v.

    A task has read its row or column before it writes there.
    """
    q, k = q.contiguous(), k.contiguous()
    lse = q.new_empty(q.shape[:-1].numel())
    _call('rmt_forward', [q, k, v, cos, sin, rates, v, lse], *q.shape, mode)
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
    grads = torch.empty_like(q), torch.empty_like(q), torch.empty_like(q)
    tensors = [q, k, v, cos, sin, rates, out, lse, grad, *grads]
    _call('rmt_backward', tensors, *q.shape, mode)
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


def rotary_tables(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel's form of cosines and sines (H, W, 1, d / 2): two (H, W, width).

    Each angle stands twice, once a channel, the first sine of a pair negative; zeros fill up to a
    whole number of vectors.
    """
    width = 2 * cos.shape[-1]
    fill = (0, -width % _lanes)
    cos, sin = torch.stack((cos, cos), dim=-1), torch.stack((-sin, sin), dim=-1)
    return tuple(F.pad(t.flatten(-3), fill).contiguous() for t in (cos, sin))


def nchw(x: Tensor) -> Tensor:
    """Contiguous copy of x (B, C, H, W), float32; quicker than PyTorch's from channels-last."""
    last = x.permute(0, 2, 3, 1)
    if not (available() and last.is_contiguous()):
        return x.contiguous()
    out = x.new_empty(x.shape)
    _call('rmt_to_nchw', [last, out], *last.shape)
    return out


class _Depthwise(torch.autograd.Function):
    """On (B, C, H, W) in channels-last memory."""

    @staticmethod
    def forward(ctx, x, weight, bias, gelu):
        slope = None
        if gelu:
            slope, x = x, torch.empty_like(x)
            _call('rmt_gelu', [slope, x], ctypes.c_int64(x.numel()))
            increment_version(slope)  # whoever has kept it for the backward pass is told
        ctx.save_for_backward(x, weight, slope)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, slope = ctx.saved_tensors
        x, grad = (t.permute(0, 2, 3, 1).contiguous() for t in (x, grad))  # (B, H, W, C)
        sizes = *x.shape, weight.shape[-1]
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), x.new_empty(x.shape[-1])
        sums = x.new_empty(_library().rmt_depthwise_sums(*sizes))
        tensors = [x, weight.contiguous(), grad, slope, dx, dweight, dbias, sums]
        _call('rmt_depthwise_backward', tensors, *sizes)
        return dx.permute(0, 3, 1, 2), dweight, dbias, None


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """Depthwise convolution of x (B, H, W, C) with weight (C, 1, K, K), K 3 or 5, and bias (C).

    float32, zero padding K / 2. Its gradients are ours: oneDNN takes several times longer for them.
    With ``gelu`` it is that of ``GELU(x)``, and the memory of x, if contiguous, then holds GELU's
    derivative, which the backward pass needs instead of x.
    """
    x = x.contiguous()
    return _Depthwise.apply(x.permute(0, 3, 1, 2), weight, bias, gelu).permute(0, 2, 3, 1)
