"""The names that a weights file may use, and what each stands for.

Tensors are made from storages by hand, within the storage's bounds. Beyond tensors, honest files
need ``argparse.Namespace`` (released ones), numpy's arrays and mmengine's log history (those of a
training). numpy's and mmengine's own unpickling of these can be led to run code, so a file is given
stand-ins, and what they describe is checked and made here.
"""

import re
from argparse import Namespace
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from .unpickle import Name, Standin

# --- tensors -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Storage:
    """Bytes of a file, and the numbers they are.

    Attributes:
        raw: (bytes,) uint8.
        start: first byte of the part that is meant.
        size: bytes in that part.
    """

    raw: Tensor
    dtype: torch.dtype
    start: int
    size: int


def tensor_of(
    storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any
) -> Tensor:
    """What ``torch._utils._rebuild_tensor_v2`` makes, if it lies within its storage.

    Args:
        rest: requires_grad, hooks (never used here: weights are numbers), and bits that say how to
            read the numbers, which no weights have.
    """
    if any(rest[2:]):
        raise ValueError('a tensor to be read in an unusual way')
    return _view(storage, storage.dtype, offset, size, stride)


def _tensor_of_dtype(
    storage: Storage, offset: int, size: tuple, stride: tuple, _grad: Any, _hooks: Any,
    dtype: torch.dtype, *rest: Any,
) -> Tensor:  # fmt: skip
    if any(rest):
        raise ValueError('a tensor to be read in an unusual way')
    return _view(storage, dtype, offset, size, stride)


def _view(storage: Storage, dtype: torch.dtype, offset: int, size: tuple, stride: tuple) -> Tensor:
    numbers = (offset, *size, *stride)
    if any(type(number) is not int or number < 0 for number in numbers) or len(size) > 64:
        raise ValueError('a tensor without a size')
    item = dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (last + 1) * item > storage.size:
        raise ValueError(f'a tensor {tuple(size)} larger than its storage')
    if storage.start % item:
        raise ValueError('a tensor between two numbers')
    first = storage.start // item + offset if 0 not in size else 0
    return torch.empty(0, dtype=dtype).set_(storage.raw.untyped_storage(), first, size, stride)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    """Stands for ``torch.nn.Parameter``: its numbers."""
    if not isinstance(data, Tensor):
        raise ValueError('a parameter that is no tensor')
    return data


def _tensor_with_attributes(make: Name, kind: Any, arguments: tuple, _state: Any) -> Tensor:
    if kind not in (_TENSOR, _PARAMETER) or make not in _TENSORS.values():
        raise UnpicklingError('GLOBAL torch._tensor._rebuild_from_type_v2')
    return make.call(*arguments)


_STORAGES = {
    'Bool': torch.bool, 'Byte': torch.uint8, 'Char': torch.int8, 'Short': torch.int16,
    'Int': torch.int32, 'Long': torch.int64, 'Half': torch.float16, 'BFloat16': torch.bfloat16,
    'Float': torch.float32, 'Double': torch.float64, 'ComplexFloat': torch.complex64,
    'ComplexDouble': torch.complex128,
}  # fmt: skip
_TENSOR, _PARAMETER = Name('torch.Tensor'), Name('torch.nn.parameter.Parameter')
_TENSORS = {
    f'torch._utils.{name}': Name(f'torch._utils.{name}', call=make)
    for name, make in {
        '_rebuild_tensor': tensor_of,
        '_rebuild_tensor_v2': tensor_of,
        '_rebuild_tensor_v3': _tensor_of_dtype,
        '_rebuild_parameter': _parameter,
        '_rebuild_parameter_with_state': _parameter,
    }.items()
}

# --- numpy and mmengine --------------------------------------------------------------------------


class _Dtype(Standin):
    """Stands for ``numpy.dtype``: numbers, truth values and strings only.

    numpy's own unpickling would let a file describe arrays of object pointers over raw bytes.
    """

    def __init__(self, kind: str, align: bool = False, copy: bool = True) -> None:
        if not re.fullmatch(r'[biufcSU]\d{1,6}', kind):
            raise ValueError(f'numpy dtype {kind!r}')
        self.value = np.dtype(kind)

    def set_state(self, state: tuple) -> None:
        _, byteorder, subdtype, names, fields, *_ = state
        if not (subdtype is names is fields is None):
            raise ValueError('a structured numpy dtype')
        self.value = self.value.newbyteorder(byteorder)


class _Array(Standin):
    """Stands for ``numpy.ndarray``."""

    def set_state(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        flat = np.frombuffer(raw, dtype.value)
        self.value = flat.reshape(shape, order='F' if fortran else 'C').copy()


class _Buffer(Standin):
    """Stands for mmengine's ``HistoryBuffer``, whose own unpickling installs foreign methods."""

    def set_state(self, state: dict) -> None:
        log, count = state['_log_history'].value, state['_count_history'].value
        self.value = HistoryBuffer(log, count, int(state['max_length']))


def _new_array(_kind: Any, _shape: tuple, _type: bytes) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, raw: bytes) -> np.generic:
    return np.frombuffer(raw, dtype.value, count=1)[0]


_BUFFER = Name('mmengine.logging.history_buffer.HistoryBuffer', new=_Buffer)


def _method_of_buffer(kind: Any, name: str) -> str:
    """Stands for ``getattr``, which ``HistoryBuffer`` pickles its four statistics with."""
    if kind is not _BUFFER or name not in ('min', 'max', 'current', 'mean'):
        raise UnpicklingError('GLOBAL builtins.getattr')
    return name


# --- Python --------------------------------------------------------------------------------------


def _encode(text: str, encoding: str) -> bytes:
    """Stands for ``_codecs.encode``, which Python pickles bytes with."""
    if encoding not in ('latin1', 'latin-1'):
        raise ValueError(f'encoding {encoding!r}')
    return text.encode('latin-1')


def _bytes(content: str | bytes = b'', encoding: str = '') -> bytes:
    """Stands for ``bytes``, never of a length alone, which could be any."""
    return _encode(content, encoding) if isinstance(content, str) else bytes(memoryview(content))


NAMES: dict[str, Any] = {
    name.path: name
    for name in (
        _TENSOR,
        _PARAMETER,
        _BUFFER,
        *_TENSORS.values(),
        Name('torch._tensor._rebuild_from_type_v2', call=_tensor_with_attributes),
        Name('torch.Size', call=torch.Size),
        Name('torch.device', call=torch.device),
        Name('numpy.dtype', call=_Dtype),
        Name('numpy.ndarray'),
        *(Name(f'numpy.{c}.multiarray._reconstruct', call=_new_array) for c in ('core', '_core')),
        *(Name(f'numpy.{c}.multiarray.scalar', call=_scalar) for c in ('core', '_core')),
        Name('argparse.Namespace', new=Namespace),  # plain attributes, no code
        Name('collections.OrderedDict', call=OrderedDict),
        Name('collections.Counter', call=Counter),  # the milestones of a schedule
        Name('_codecs.encode', call=_encode),
        Name('builtins.bytes', call=_bytes),
        Name('builtins.bytearray', call=lambda *content: bytearray(_bytes(*content))),
        Name('builtins.set', call=set),
        Name('builtins.complex', call=complex),
        Name('builtins.getattr', call=_method_of_buffer),
    )
}
NAMES |= {f'torch.{name}Storage': dtype for name, dtype in _STORAGES.items()}
NAMES['torch.storage.UntypedStorage'] = torch.uint8
NAMES |= {f'{value}': value for value in vars(torch).values() if isinstance(value, torch.dtype)}


def restored(data: Any, device: Any) -> Any:
    """Plain data with the real arrays and buffers in place of stand-ins, tensors on ``device``."""
    return _restore(data, torch.device(device), {})


def _restore(data: Any, device: torch.device, seen: dict[int, Any]) -> Any:
    if isinstance(data, Standin):
        return data.value
    if id(data) in seen:
        return seen[id(data)][1]
    result = data.to(device) if isinstance(data, Tensor) else data
    seen[id(data)] = data, result  # holds the object itself, lest its id be given to another
    if isinstance(data, dict):
        for key in data:
            data[key] = _restore(data[key], device, seen)
    elif isinstance(data, Namespace):
        _restore(vars(data), device, seen)
    elif type(data) is list:
        data[:] = [_restore(value, device, seen) for value in data]
    elif type(data) is tuple:
        result = tuple(_restore(value, device, seen) for value in data)
        seen[id(data)] = data, result
    return result
