"""Compiles ``csrc/`` once, loads it, and checks what goes into it.

The compiled file is kept in the user's cache directory, named by what it depends on (the source,
the compiler, the processor), so that one home directory serves several machines. Where there is no
g++ there are no kernels, and the layers compute without them.
"""

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.autograd import forward_ad

SOURCES = sorted(Path(__file__).with_name('csrc').glob('*.[ch]*'))
FLAGS = ('-O3', '-march=native', '-std=c++17', '-fPIC', '-fopenmp')
EXTRA_FLAGS = 'RMT_KERNEL_FLAGS'
"""The environment variable of further flags, e.g. ``-march=x86-64``."""

_lock = threading.Lock()
_library: ctypes.CDLL | None = None
_problem = ''


class NoKernels(Exception):
    """Why there are none, in one line."""


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
                except (NoKernels, OSError) as error:
                    _problem = str(error)
    return _problem


def forget() -> None:
    """Look for the kernels again at the next call."""
    global _library, _problem
    _library, _problem = None, ''


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(compiled()), mode=os.RTLD_NOW)
    for tells in SCRATCH.values():
        getattr(library, tells).restype = ctypes.c_int64
    return library


def compiled() -> Path:
    """The compiled file; made if it is not there.

    Raises:
        NoKernels, OSError: it cannot be made.
    """
    compiler, extra = _words('CXX') or ['g++'], _words(EXTRA_FLAGS)
    name = f'kernel-{_fingerprint(compiler, extra)}.so'
    file = next((f / name for f in _folders() if _only_ours(f) and _only_ours(f / name)), None)
    if file is None:
        file = _place() / name
        _compile(compiler, extra, file)
    return file


def _words(variable: str) -> list[str]:
    try:
        return shlex.split(os.environ.get(variable, ''))
    except ValueError as error:
        raise NoKernels(f'{variable}={os.environ[variable]}: {error}') from error


def _fingerprint(compiler: Sequence[str], extra: Sequence[str]) -> str:
    version = _run([*compiler, '--version'], f'needs a C++ compiler (g++): {shlex.join(compiler)}')
    if 'clang' in version:
        raise NoKernels(
            f'needs g++: {shlex.join(compiler)} is clang, whose threads are not those of PyTorch; '
            'set CXX=g++'
        )
    facts = [
        *(file.read_text() for file in SOURCES),
        *FLAGS,
        *extra,
        version,
        platform.machine(),
        torch.__version__,
    ]
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        facts += sorted({x for x in lines if x.startswith(('flags', 'Features', 'model name'))})
    return hashlib.sha256('\n'.join(facts).encode()).hexdigest()[:16]


def _compile(compiler: Sequence[str], extra: Sequence[str], target: Path) -> None:
    print_log(f'RMT: compiling the CPU kernels, once, into {target}', logger='current')
    failed = f'{shlex.join(compiler)} cannot compile the kernels into {target.parent}'
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        linked = Path(work) / 'kernel.so'
        run = functools.partial(_run, failed=failed, cwd=work)
        sources = [str(file) for file in SOURCES if file.suffix == '.cpp']
        run([*compiler, *FLAGS, *extra, '-c', *sources])
        # Linked without -fopenmp: the threads are those of the OpenMP that PyTorch has loaded. A
        # second one would compete with it for the cores.
        objects = sorted(p.name for p in Path(work).glob('*.o'))
        run([*compiler, *extra, '-shared', *objects, '-o', linked.name])
        linked.chmod(0o700)
        os.replace(linked, target)  # another process may have been quicker: the same file


def _run(command: Sequence[str], failed: str, cwd: str | None = None) -> str:
    """What a command prints.

    Raises:
        NoKernels: it fails, or is not there; ``failed`` and why.
    """
    try:
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, 'stderr', None) or str(error)).splitlines()
        # a compiler says much, of which errors count
        reason = next((line for line in lines if 'error' in line.lower()), lines[0])
        raise NoKernels(f'{failed}: {" ".join(reason.split())}') from error


# --- where the compiled file is ------------------------------------------------------------------


def _folders() -> Iterator[Path]:
    """Where it may be, best first: the user's cache; a folder for temporary files of the user's."""
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    if os.path.isabs(cache):  # not where nobody knows what ~ is
        yield Path(cache) / 'rmt-downstream'
    yield Path(tempfile.gettempdir()) / f'rmt-downstream-{os.geteuid()}'


def _place() -> Path:
    """A folder to compile into, which nobody else can write to.

    Where neither of :func:`_folders` can be had, it is removed when the process ends.
    """
    for folder in _folders():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.lstat().st_uid == os.geteuid():
                folder.chmod(0o700)  # an earlier release took what the umask gave
        except OSError:
            continue
        if _only_ours(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    folder = Path(tempfile.mkdtemp(prefix='rmt-downstream-'))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _only_ours(path: Path) -> bool:
    """Whether it is there, and nobody but this user and root can have put or changed it.

    What it holds is run: in a folder for everybody's files, anybody may have put it.
    """
    try:
        found = path.lstat()
    except OSError:
        return False
    others_write = found.st_mode & 0o022 or stat.S_ISLNK(found.st_mode)
    return found.st_uid in (0, os.geteuid()) and not others_write


# --- calls ---------------------------------------------------------------------------------------

SCRATCH = {
    name: f'{name}_scratch' for name in ('rmt_forward', 'rmt_backward', 'rmt_depthwise_backward')
}
"""Functions that take memory to work in, behind their tensors, and those that tell how much."""


def escaped() -> bool:
    """Whether something follows each operator of PyTorch, which calls by address would escape.

    That is a tracer, a transformation of ``torch.func``, forward-mode differentiation.
    """
    return (
        torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    )


def check_shapes(**wanted: tuple[Tensor, Sequence[int]]) -> None:
    """Whether each named tensor has the shape that belongs to it.

    Raises:
        ValueError: one has another.
    """
    for name, (tensor, shape) in wanted.items():
        if tensor.shape != torch.Size(shape):
            raise ValueError(f'{name}: {tuple(shape)} wanted, not {tuple(tensor.shape)}')


def call(name: str, tensors: Sequence[Tensor | None], *numbers: int | ctypes.c_int64) -> None:
    """Call a function of the kernels with the tensors' addresses, numbers, and PyTorch's threads.

    Its shapes are the caller's to check. It allocates nothing: what it works in is a tensor too.

    Raises:
        ValueError: a tensor that C++ cannot read by its address as a dense array of floats.
        RuntimeError: there are no kernels here.
    """
    if reason := problem():
        raise RuntimeError(f'{name}: {reason}')
    addresses = [_address(name, i, tensor) for i, tensor in enumerate(tensors)]
    numbers = *numbers, torch.get_num_threads()
    if name in SCRATCH:
        floats = getattr(_library, SCRATCH[name])(*numbers)
        scratch = torch.empty(floats, dtype=torch.float32, device='cpu')
        addresses.append(_address(name, len(tensors), scratch))
    getattr(_library, name)(*addresses, *numbers)


def _address(name: str, place: int, tensor: Tensor | None) -> ctypes.c_void_p:
    if tensor is None:
        return ctypes.c_void_p(None)
    if tensor.layout != torch.strided or not tensor.is_contiguous():
        layout = f'{tensor.layout} with strides {tuple(tensor.stride())}'
    elif tensor.device.type == 'cpu' and tensor.numel() and not tensor.data_ptr():
        layout = 'without storage'
    else:
        layout = 'a view to be negated' if tensor.is_neg() else 'contiguous'
    if (tensor.device.type, tensor.dtype, layout) != ('cpu', torch.float32, 'contiguous'):
        raise ValueError(
            f'{name}: argument {place} is {tensor.dtype} on {tensor.device}, {layout}; '
            'contiguous float32 on the CPU wanted'
        )
    return ctypes.c_void_p(tensor.data_ptr())
