"""Bytes of a weights file -> dict -> state dict, without running any code the file may carry.

A ``.pth`` file is a pickle, and unpickling can call any function; see ``unpickle.py``.
"""

import hashlib
import json
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .unpickle import disarm_config_text, load_pickle


class CheckpointError(ValueError):
    """A weights file is refused. The message is one line: the file, what is wrong, what to do."""


class Checkpoint(dict):
    """What a weights file holds; ``source`` is where it came from, for messages."""

    source: str


def read_checkpoint(path: str | os.PathLike, map_location: Any = 'cpu') -> Checkpoint:
    """Read a local ``.pth`` or ``.safetensors`` file into a dict of plain data and tensors.

    Raises:
        CheckpointError: the file is not there, not readable, not weights, damaged, or unsafe.
    """
    path = os.path.expanduser(os.fspath(path))
    try:
        if os.path.isdir(path):
            raise CheckpointError(f'{path}: is a directory; give the weights file inside it')
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise CheckpointError(f'{path}: is not a regular file')
        with open(path, 'rb') as file:
            checkpoint = _read_open_file(path, file, map_location)
    except OSError as error:
        raise CheckpointError(f'{path}: {error.strerror or error}') from error
    if not isinstance(checkpoint, dict):
        kind = type(checkpoint).__name__
        raise CheckpointError(f'{path}: holds one {kind}, not a dict of weights')
    checkpoint = Checkpoint(checkpoint)
    checkpoint.source = path
    disarm_config_text(checkpoint)
    return checkpoint


def _read_open_file(path: str, file: BinaryIO, map_location: Any) -> Any:
    size = os.fstat(file.fileno()).st_size
    head = file.read(512)
    file.seek(0)
    if size == 0:
        raise CheckpointError(f'{path}: the file is empty; download or copy it again')
    if _is_safetensors(head, size):
        return _read_safetensors(path)
    if head.startswith(b'PK\x03\x04'):
        _check_archive(path, file, size)
    elif not head.startswith(b'\x80\x02'):  # torch's format before 1.6: bare pickles
        raise CheckpointError(f'{path}: {_explain_foreign(head)}')
    return _unpickle(path, file, map_location)


# --- what the bytes look like --------------------------------------------------------------------


def _explain_foreign(head: bytes) -> str:
    """Say what a file that is no weights file probably is."""
    text = head.lstrip(b'\xef\xbb\xbf \t\r\n')
    if text.startswith(b'version https://git-lfs'):
        return 'a git-lfs pointer, the weights themselves are not here; run `git lfs pull`'
    if text[:1] == b'<':
        return 'an HTML page saved under this name (a login or error page?); download it again'
    archives = {b'\x1f\x8b': 'gzip', b'7z\xbc\xaf': '7-zip', b'Rar!': 'rar', b'BZh': 'bzip2'}
    for magic, name in archives.items():
        if head.startswith(magic):
            return f'a {name} archive; unpack it and give the weights file inside'
    if head[257:262] == b'ustar':
        return 'a tar archive; unpack it and give the weights file inside'
    if not any(byte < 9 for byte in head):
        return 'a text file, not weights; download it again'
    return 'neither a PyTorch nor a safetensors file, or its beginning is damaged'


_ZIP_ERRORS = (zipfile.BadZipFile, EOFError, NotImplementedError, OverflowError, struct.error)


def _check_archive(path: str, file: BinaryIO, size: int) -> None:
    """Check the zip container of a .pth file: complete, no bomb, every checksum right.

    torch's own reader checks no checksums, so a flipped bit would become a weight.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            names = {member.filename.rsplit('/', 1)[-1] for member in members}
            if 'constants.pkl' in names:
                raise CheckpointError(f'{path}: a TorchScript program, not weights')
            if 'data.pkl' not in names:
                raise CheckpointError(f'{path}: a zip archive without weights; unpack it first')
            # torch stores members uncompressed: together they cannot be larger than the file
            unpacked = sum(member.file_size for member in members)
            if unpacked > size or any(m.compress_type != zipfile.ZIP_STORED for m in members):
                raise CheckpointError(
                    f'{path}: a compressed archive ({size:,} bytes, {unpacked:,} unpacked), which '
                    'torch never writes; refused as a possible zip bomb, nothing was unpacked'
                )
            damaged = archive.testzip()
    except CheckpointError:
        raise
    except (*_ZIP_ERRORS, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f'{path}: truncated or damaged (it is {size:,} bytes long); download or copy it again'
        ) from error
    if damaged is not None:
        raise CheckpointError(f'{path}: damaged, {damaged} fails its checksum; download it again')
    file.seek(0)


def _is_safetensors(head: bytes, size: int) -> bool:
    return head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < size


def _read_safetensors(path: str) -> dict:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError(f'{path}: needs `pip install safetensors`') from error
    try:
        with safe_open(path, framework='pt') as file:
            state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            meta = json.loads((file.metadata() or {}).get('meta', '{}'))
            stored = meta.get('rmt', {}).get('tensors_sha256')  # the format itself has no checksums
    except (SafetensorError, ValueError, AttributeError) as error:
        raise CheckpointError(f'{path}: damaged safetensors file ({_first_line(error)})') from error
    if stored not in (None, sha256_of_tensors(state_dict)):
        raise CheckpointError(
            f'{path}: damaged, the tensors fail their checksum; download it again'
        )
    return {'meta': meta, 'state_dict': state_dict}


# --- the pickle inside ---------------------------------------------------------------------------


def _unpickle(path: str, file: BinaryIO, map_location: Any) -> Any:
    try:
        return load_pickle(file, map_location)
    except UnpicklingError as error:
        named = re.search(r'GLOBAL (\S+)', str(error)) or re.search(r'function (.+)', str(error))
        if named is None:
            raise CheckpointError(f'{path}: damaged pickle ({_first_line(error)})') from error
        raise CheckpointError(
            f'{path}: refused, it asks for {named[1]}, which may run code; if you trust whoever '
            'made it, load it yourself with torch.load(..., weights_only=False) and save its '
            'state_dict with torch.save'
        ) from error
    except Exception as error:  # whatever a damaged pickle makes torch stumble over
        raise CheckpointError(
            f'{path}: truncated or damaged ({type(error).__name__}: {_first_line(error)})'
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), '')[:120]


def sha256_of(file: BinaryIO) -> str:
    """SHA-256 of a whole open file in hex; leaves it at its beginning."""
    file.seek(0)
    digest = hashlib.file_digest(file, 'sha256') if hasattr(hashlib, 'file_digest') else None
    if digest is None:  # Python 3.10
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    file.seek(0)
    return digest.hexdigest()


def sha256_of_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values: the same in whatever file they are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


# --- what the dict holds -------------------------------------------------------------------------


def state_dict_in(checkpoint: Mapping, source: str, key: str | None = None) -> dict[str, Tensor]:
    """The state dict in a checkpoint: under ``key`` if given, else 'state_dict', 'model', or bare.

    Raises:
        CheckpointError: there is none, or it holds something else than plain dense tensors.
    """
    keys = [key] if key else [k for k in ('state_dict', 'model') if k in checkpoint]
    state_dict = checkpoint.get(keys[0]) if keys else checkpoint
    if isinstance(state_dict, Mapping) and isinstance(state_dict.get('state_dict'), Mapping):
        state_dict = state_dict['state_dict']
    nothing = not isinstance(state_dict, Mapping) or not state_dict
    if nothing or (not keys and not any(isinstance(t, Tensor) for t in checkpoint.values())):
        wanted = f'weights under {key!r}' if key else 'weights'
        raise CheckpointError(f'{source}: holds no {wanted}, only {first_few(checkpoint)}')
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise CheckpointError(f'{source}: {name!r} is a {kind}, where only weights should be')
        if problem := _tensor_problem(tensor):
            raise CheckpointError(f'{source}: {name} is {problem}')
    while all(name.startswith('module.') for name in state_dict):  # from data parallel training
        state_dict = {name.removeprefix('module.'): t for name, t in state_dict.items()}
    return dict(state_dict)


def _tensor_problem(tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return 'not a plain dense tensor'
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f'{tuple(tensor.shape)} numbers stretched over a smaller storage'
    return ''


def meta_in(checkpoint: Mapping) -> dict:
    """What a checkpoint says of itself; ``['rmt']`` is what the converter wrote. Empty if not."""
    meta = checkpoint.get('meta')
    return meta if isinstance(meta, dict) else {}


def class_names(meta: dict) -> list[str]:
    """Class names as mmengine ('dataset_meta') or mmdet 2 and mmseg 0 ('CLASSES') store them."""
    dataset = meta.get('dataset_meta')
    names = dataset.get('classes') if isinstance(dataset, dict) else meta.get('CLASSES')
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else []


def first_few(names: Iterable, count: int = 3) -> str:
    """The first few names and how many more there are."""
    names = [str(name)[:160] for name in names]
    more = f', and {len(names) - count} more' if len(names) > count else ''
    return (', '.join(names[:count]) or 'nothing') + more
