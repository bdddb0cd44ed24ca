"""A pretended GPU: import it before torch, in a process of its own.

Tensors made on 'cuda' inside ``FakeTensorMode`` have a shape, a type and a device, and no numbers.
What runs on them shows which operators mix devices or types, and how many bytes are asked for.
"""

import ctypes
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CAPABILITY = (8, 0)


def _load_hooks() -> None:
    """Compile and load ``pretend.cpp``; PyTorch asks for such hooks once, while it is imported."""
    library = Path(importlib.util.find_spec('torch').origin).parent
    include = library / 'include'
    with tempfile.TemporaryDirectory() as folder:
        shim = Path(folder) / 'pretend.so'
        source = Path(__file__).with_name('pretend.cpp')
        includes = [f'-I{include}', f'-I{include}/torch/csrc/api/include']
        flags = ['-std=c++20', '-O1', '-shared', '-fPIC']
        subprocess.run(['g++', *flags, *includes, str(source), '-o', str(shim)], check=True)
        for name in ('libc10.so', 'libtorch_cpu.so'):
            ctypes.CDLL(str(library / 'lib' / name), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(shim))


if 'torch' in sys.modules:
    raise ImportError('pretend: torch is imported already; import this first')
_load_hooks()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

torch.cuda.amp.common.amp_definitely_not_available = lambda: False  # else autocast stays off
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_capability = lambda device=None: CAPABILITY
torch.cuda.is_bf16_supported = lambda *_: True


@contextmanager
def autocast(dtype: torch.dtype) -> Iterator[None]:
    """``torch.autocast('cuda', dtype)``, which itself looks for a GPU; float32 is none at all."""
    torch.set_autocast_enabled('cuda', dtype != torch.float32)
    torch.set_autocast_dtype('cuda', dtype if dtype != torch.float32 else torch.float16)
    try:
        yield
    finally:
        torch.set_autocast_enabled('cuda', False)
        torch.clear_autocast_cache()


def to_gpu(model: nn.Module) -> nn.Module:
    """Put fake tensors in the place of all parameters and buffers, inside ``FakeTensorMode``."""
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                new = torch.empty(old.shape, dtype=old.dtype, device='cuda')
                module._parameters[name] = nn.Parameter(new, old.requires_grad)
        for name, old in module._buffers.items():
            if old is not None:
                module._buffers[name] = torch.empty(old.shape, dtype=old.dtype, device='cuda')
    return model


class Watch(TorchDispatchMode):
    """What operators make and are given.

    Attributes:
        largest: (bytes, operator, shape) of the largest new storage.
        attention: the same among operators between the marks of attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, object] = {}
        self.largest = self.attention = (0, '', ())
        self.in_attention = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._is_new(tensor)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and self._is_new(tensor):
                made = tensor.untyped_storage().nbytes(), str(func), tuple(tensor.shape)
                self.largest = max(self.largest, made)
                if self.in_attention or str(func).startswith('rmt'):
                    self.attention = max(self.attention, made)
        return out

    def _is_new(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        known = id(storage) in self.storages
        self.storages[id(storage)] = storage  # held: its id is not used again
        return not known
