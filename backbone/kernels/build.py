"""Compiles ``csrc/`` once, loads it, and checks what goes into it.

The compiled file is kept in the user's cache directory, named by what it depends on (the source,
the compiler, the processor), so that one home directory serves several machines. Where there is no
C++ compiler there are no kernels, and the layers compute without them.
"""

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor

SOURCES = sorted(Path(__file__).with_name('csrc').glob('*.[ch]*'))
FLAGS = ('-O3', '-march=native', '-std=c++17', '-fPIC', '-fopenmp')

_lock = threading.Lock()
_library: ctypes.CDLL | None = None
_problem = ''


def available() -> bool:
    """Whether the kernels can run here; compiles them at the first call (some seconds, once)."""
    return not problem()


def problem() -> str:
    """Why there are no kernels here, '' where there are; compiles them at the first call."""
    global _library, _problem
    if _library is None and not _problem:
        with _lock:
            if _library is None and not _problem:
                try:
                    _library = _load()
                except (OSError, subprocess.SubprocessError) as error:
                    reason = getattr(error, 'stderr', None) or str(error)
                    _problem = f'needs a C++ compiler (g++): {" ".join(reason.split())}'
    return _problem


def forget() -> None:
    """Look for the kernels again at the next call."""
    global _library, _problem
    _library, _problem = None, ''


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
    library = ctypes.CDLL(str(folder / name), mode=os.RTLD_NOW)
    library.rmt_depthwise_sums.restype = ctypes.c_int64
    return library


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


def check_shapes(**wanted: tuple[Tensor, Sequence[int]]) -> None:
    """Whether each named tensor has the shape that belongs to it.

    Raises:
        ValueError: one has another.
    """
    for name, (tensor, shape) in wanted.items():
        if tensor.shape != torch.Size(shape):
            raise ValueError(f'{name}: {tuple(shape)} wanted, not {tuple(tensor.shape)}')


def call(name: str, tensors: Sequence[Tensor | None], *numbers: int | ctypes.c_int64) -> int:
    """Call a function of the kernels with the tensors' addresses, numbers, and PyTorch's threads.

    Its shapes are the caller's to check.

    Raises:
        ValueError: a tensor that C++ cannot read by its address as a dense array of floats.
        RuntimeError: there are no kernels here.
    """
    if reason := problem():
        raise RuntimeError(f'{name}: {reason}')
    addresses = [_address(name, i, tensor) for i, tensor in enumerate(tensors)]
    return getattr(_library, name)(*addresses, *numbers, torch.get_num_threads())


def _address(name: str, place: int, tensor: Tensor | None) -> ctypes.c_void_p:
    if tensor is None:
        return ctypes.c_void_p(None)
    if tensor.device.type != 'cpu' or tensor.dtype != torch.float32 or not tensor.is_contiguous():
        layout = 'contiguous' if tensor.is_contiguous() else f'with strides {tensor.stride()}'
        raise ValueError(
            f'{name}: argument {place} is {tensor.dtype} on {tensor.device}, {layout}; '
            'contiguous float32 on the CPU wanted'
        )
    return ctypes.c_void_p(tensor.data_ptr())
