"""What ``torch.save`` writes around its pickle: a zip archive, or bare pickles before torch 1.6.

Read by Python's zip reader alone, checksums included: a second reader (torch's, in C++) may see
another file in the same bytes. Nothing is unpacked or allocated beyond the size of the file.
"""

import io
import sys
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .names import NAMES, Storage, restored
from .unpickle import unpickle

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # torch's, for bare pickles


def read_archive(archive: zipfile.ZipFile, device: Any) -> Any:
    """The data in an archive of torch's.

    Raises:
        UnpicklingError: see :func:`backbone.weights.unpickle.unpickle`.
        BadZipFile: a member fails its checksum.
        Exception: whatever damaged data make the readers stumble over.
    """
    members = {member.filename: member for member in archive.infolist()}
    pickled = next(name for name in members if name.rsplit('/', 1)[-1] == 'data.pkl')
    folder = pickled.removesuffix('data.pkl')
    order = folder + 'byteorder'
    _check_order(order not in members or archive.read(order) == b'little')

    def load(key: str, size: int) -> Tensor:
        member = members[f'{folder}data/{key}']
        if member.file_size != size:
            raise ValueError(f'{member.filename} is of another size than its numbers')
        with archive.open(member) as file:
            return _filled(file, torch.empty(size, dtype=torch.uint8))

    stream = io.BytesIO(archive.read(pickled))
    return restored(unpickle(stream, NAMES, _Storages(load)), device)


def read_pickles(file: BinaryIO, size: int, device: Any) -> Any:
    """The data in a file of bare pickles, ``size`` bytes long.

    Raises:
        UnpicklingError: see :func:`backbone.weights.unpickle.unpickle`.
        Exception: whatever damaged data make the readers stumble over.
    """
    if unpickle(file, NAMES) != _MAGIC or unpickle(file, NAMES) != _PROTOCOL:
        raise ValueError('no file of torch')
    _check_order(unpickle(file, NAMES)['little_endian'])
    room = size

    def allocate(key: str, nbytes: int) -> Tensor:
        nonlocal room
        room -= nbytes
        if room < 0:
            raise ValueError('storages larger than the file')
        return torch.empty(nbytes, dtype=torch.uint8)

    storages = _Storages(allocate)
    data = unpickle(file, NAMES, storages)
    for key in unpickle(file, NAMES):  # the numbers follow, in this order
        storage = storages.of_key[key]
        count = int.from_bytes(file.read(8), 'little')
        if count * storage.dtype.itemsize != storage.size:
            raise ValueError(f'storage {key} is of another size than its numbers')
        _filled(file, storage.raw)
    return restored(data, device)


class _Storages:
    """Storages by what pickles call them; each is loaded once."""

    def __init__(self, load: Callable[[str, int], Tensor]) -> None:
        self.load = load
        self.of_key: dict[str, Storage] = {}

    def __call__(self, name: tuple) -> Storage:
        kind, dtype, key, _location, count, *view = name
        if kind != 'storage' or not isinstance(dtype, torch.dtype) or type(count) is not int:
            raise ValueError('what is no storage')
        if count < 0:
            raise ValueError('a storage without a size')
        size = count * dtype.itemsize
        if key not in self.of_key:
            self.of_key[key] = Storage(self.load(key, size), dtype, 0, size)
        storage = self.of_key[key]
        if (storage.dtype, storage.size) != (dtype, size):
            raise ValueError(f'storage {key} is said to be two things')
        if any(view):
            _, start, count = view[0]
            start, part = start * dtype.itemsize, count * dtype.itemsize
            if start < 0 or part < 0 or start + part > size:
                raise ValueError('a part larger than its storage')
            storage = Storage(storage.raw, dtype, start, part)
        return storage


def _filled(file: BinaryIO, raw: Tensor) -> Tensor:
    target = memoryview(raw.numpy())
    done = 0
    while done < len(target):
        count = file.readinto(target[done : done + (1 << 24)])
        if not count:
            raise EOFError('numbers are missing at the end')
        done += count
    return raw


def _check_order(little: bool) -> None:
    if not little or sys.byteorder != 'little':
        raise ValueError('numbers of a big-endian machine, or read on one')
