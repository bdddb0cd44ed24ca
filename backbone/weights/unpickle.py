"""Pickle -> plain data and tensors, with torch's restricted unpickler and a few inert stand-ins.

Honest files need a handful of names beyond tensors: numpy's arrays and the log history in the
checkpoints of mmengine, the ``argparse.Namespace`` in the released files. numpy's and mmengine's
own unpickling of them can be led to run code, so a file is given stand-ins, and what they
describe is checked and made afterwards.
"""

import argparse
import ast
import re
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def load_pickle(file: BinaryIO, map_location: Any) -> Any:
    """Read a ``torch.save`` file without running code.

    Raises:
        UnpicklingError: it asks for a name that is not allowed ("GLOBAL module.name").
        Exception: whatever a damaged pickle makes torch stumble over.
    """
    with torch.serialization.safe_globals(_STAND_INS):
        return _restore(torch.load(file, map_location, weights_only=True), {})


class _Dtype:
    """Stands for ``numpy.dtype``: numbers, truth values and strings only.

    numpy's own unpickling would let a file describe arrays of object pointers over raw bytes.
    """

    def __init__(self, kind: str, align: bool = False, copy: bool = True) -> None:
        if not re.fullmatch(r'[biufcSU]\d{1,6}', kind):
            raise ValueError(f'numpy dtype {kind!r}')
        self.value = np.dtype(kind)

    def __setstate__(self, state: tuple) -> None:
        _, byteorder, subdtype, names, fields, *_ = state
        if not (subdtype is names is fields is None):
            raise ValueError('a structured numpy dtype')
        self.value = self.value.newbyteorder(byteorder)


class _Array:
    """Stands for ``numpy.ndarray``."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        flat = np.frombuffer(raw, dtype.value)
        self.value = flat.reshape(shape, order='F' if fortran else 'C').copy()


class _Buffer:
    """Stands for mmengine's ``HistoryBuffer``, whose own unpickling installs foreign methods."""

    def __setstate__(self, state: dict) -> None:
        log, count = state['_log_history'].value, state['_count_history'].value
        self.value = HistoryBuffer(log, count, int(state['max_length']))


def _new_array(cls: type, shape: tuple, kind: bytes) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, raw: bytes) -> np.generic:
    return np.frombuffer(raw, dtype.value, count=1)[0]


def _empty_bytes() -> bytes:
    """Stands for ``bytes``, which Python pickles an empty array's data with."""
    return b''


def _method_of_buffer(cls: type, name: str) -> str:
    """Stands for ``getattr``, which ``HistoryBuffer`` pickles its four statistics with."""
    if cls is not _Buffer or name not in ('min', 'max', 'current', 'mean'):
        raise UnpicklingError('GLOBAL builtins.getattr')
    return name


_STAND_INS = [
    argparse.Namespace,  # plain attributes, no code
    (_Buffer, 'mmengine.logging.history_buffer.HistoryBuffer'),
    (_method_of_buffer, 'builtins.getattr'),
    (_empty_bytes, 'builtins.bytes'),
    (_Dtype, 'numpy.dtype'),
    (_Array, 'numpy.ndarray'),
    *((_new_array, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
    *((_scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
]


def _restore(data: Any, seen: dict[int, Any]) -> Any:
    """Put the real arrays and buffers where their stand-ins are, in place where possible."""
    if isinstance(data, (_Dtype, _Array, _Buffer)):
        return data.value
    if id(data) in seen:
        return seen[id(data)][1]
    restored = data
    seen[id(data)] = data, restored  # holds the object itself, lest its id be given to another
    if isinstance(data, dict):
        for key in data:
            data[key] = _restore(data[key], seen)
    elif isinstance(data, argparse.Namespace):
        _restore(vars(data), seen)
    elif type(data) is list:
        data[:] = [_restore(value, seen) for value in data]
    elif type(data) is tuple:
        restored = tuple(_restore(value, seen) for value in data)
        seen[id(data)] = data, restored
    return restored


def disarm_config_text(checkpoint: dict) -> None:
    """Keep mmengine from running a stored config, which is Python source to it.

    ``Runner.resume`` executes ``meta['config']``, only to count GPUs; an inferencer without a
    config of its own executes the message hub's ``cfg``, which stays if it is nothing but data.
    """
    meta = checkpoint.get('meta')
    if isinstance(meta, dict) and 'config' in meta:
        meta['config_text'] = meta.pop('config')
    hub = checkpoint.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, dict) else None
    if isinstance(info, dict) and 'cfg' in info and not _is_plain_data(info['cfg']):
        del info['cfg']


def _is_plain_data(source: Any) -> bool:
    """Whether a config text only assigns literals and ``dict(...)`` to names."""
    allowed = (ast.Module, ast.Assign, ast.Name, ast.Store, ast.Load, ast.Constant, ast.keyword)
    allowed += (ast.Call, ast.Dict, ast.List, ast.Tuple, ast.Set, ast.UnaryOp, ast.USub)
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return False
    calls = (node.func for node in nodes if isinstance(node, ast.Call))
    return all(isinstance(node, allowed) for node in nodes) and all(
        isinstance(func, ast.Name) and func.id == 'dict' for func in calls
    )
