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
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .checkpoint import Checkpoint, CheckpointError, first_few, own_meta, settled
from .containers import read_archive, read_pickles
from .fetch import local_file


def read_checkpoint(
    file: str | os.PathLike, map_location: Any = 'cpu', source: str | None = None
) -> Checkpoint:
    """Read a ``.pth`` or ``.safetensors`` file into a dict of plain data and tensors.

    Args:
        file: a path, or an ``http://`` or ``https://`` address.
        map_location: the device of the tensors; what ``torch.load`` takes beside devices means the
            CPU.
        source: what messages call the file, if not by its path.

    Raises:
        CheckpointError: the file is not there, not readable, not weights, damaged, or unsafe.
    """
    path = local_file(file)
    source = source or path
    device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
    try:
        with _opened(path, source) as stream:
            content = _read_stream(stream, path, source, device)
    except OSError as error:
        raise CheckpointError(f'{source}: {error.strerror or error}') from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(f'{source}: holds one {kind}, not a dict of weights')
    return settled(content, source)


def _opened(path: str, source: str) -> BinaryIO:
    if os.path.isdir(path):
        raise CheckpointError(f'{source}: is a directory; give the weights file inside it')
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
        raise CheckpointError(f'{source}: is not a regular file')
    return open(path, 'rb')


def _read_stream(file: BinaryIO, path: str, source: str, device: Any) -> Any:
    size = os.fstat(file.fileno()).st_size
    head = file.read(512)
    file.seek(0)
    if size == 0:
        raise CheckpointError(f'{source}: the file is empty; download or copy it again')
    if _is_safetensors(head, size):
        return _read_safetensors(path, source, device)
    try:
        if head.startswith(b'PK\x03\x04'):
            return _read_archive(source, file, size, device)
        if head.startswith(b'\x80\x02'):  # torch's format before 1.6: bare pickles
            return read_pickles(file, size, device)
    except CheckpointError:
        raise
    except UnpicklingError as error:
        if not str(error).startswith('GLOBAL '):
            raise CheckpointError(f'{source}: damaged pickle ({_first_line(error)})') from error
        asked = _first_line(error).removeprefix('GLOBAL ').removeprefix('builtins.')
        raise CheckpointError(
            f'{source}: refused, it asks for {asked}, which may run code; if you trust whoever '
            'made it, load it yourself with torch.load(..., weights_only=False) and save its '
            'state_dict with torch.save'
        ) from error
    except Exception as error:  # whatever damaged data make the readers stumble over
        raise CheckpointError(
            f'{source}: truncated or damaged ({type(error).__name__}: {_first_line(error)})'
        ) from error
    raise CheckpointError(f'{source}: {_explain_foreign(head)}')


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


def _read_archive(source: str, file: BinaryIO, size: int, device: Any) -> Any:
    """A zip archive, if it is one of torch's and no bomb."""
    try:
        archive = zipfile.ZipFile(file)
    except (*_ZIP_ERRORS, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f'{source}: truncated or damaged (it is {size:,} bytes long); download or copy it again'
        ) from error
    with archive:
        members = archive.infolist()
        names = [member.filename.rsplit('/', 1)[-1] for member in members]
        if 'constants.pkl' in names:
            raise CheckpointError(f'{source}: a TorchScript program, not weights')
        if 'data.pkl' not in names:
            raise CheckpointError(f'{source}: a zip archive without weights; unpack it first')
        # torch stores members uncompressed: together they cannot be larger than the file
        unpacked = sum(member.file_size for member in members)
        if unpacked > size or any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise CheckpointError(
                f'{source}: a compressed archive ({size:,} bytes, {unpacked:,} unpacked), which '
                'torch never writes; refused as a possible zip bomb, nothing was unpacked'
            )
        try:
            return read_archive(archive, device)
        except zipfile.BadZipFile as error:
            found = re.fullmatch("Bad CRC-32 for file '(.*)'", str(error))
            what = f'{found[1]} fails its checksum' if found else _first_line(error)
            raise CheckpointError(f'{source}: damaged, {what}; download it again') from error


def _is_safetensors(head: bytes, size: int) -> bool:
    return head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < size


def _read_safetensors(path: str, source: str, device: Any) -> dict:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise CheckpointError(f'{source}: needs `pip install safetensors`') from error
    try:
        with safe_open(path, framework='pt') as file:
            state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            meta = json.loads((file.metadata() or {}).get('meta', '{}'))
    except Exception as error:  # whatever damaged data make that reader stumble over
        raise CheckpointError(
            f'{source}: damaged safetensors file ({_first_line(error)})'
        ) from error
    checkpoint = {'meta': meta, 'state_dict': state_dict}
    stored = own_meta(checkpoint).get('tensors_sha256')  # the format itself has no checksums
    if stored not in (None, sha256_of_tensors(state_dict)):
        raise CheckpointError(
            f'{source}: damaged, the tensors fail their checksum; download it again'
        )
    checkpoint['state_dict'] = {key: tensor.to(device) for key, tensor in state_dict.items()}
    return checkpoint


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), '')[:120]


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
    check_tensors(state_dict, source)
    while all(name.startswith('module.') for name in state_dict):  # from data parallel training
        state_dict = {name.removeprefix('module.'): t for name, t in state_dict.items()}
    return dict(state_dict)


def check_tensors(state_dict: Mapping, source: str) -> None:
    """Refuse what is no name with plain numbers.

    Raises:
        CheckpointError: some entry is something else.
    """
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            what = str(name)[:160]
            raise CheckpointError(f'{source}: {what!r} is a {kind}, where only weights should be')
        if problem := _tensor_problem(tensor):
            raise CheckpointError(f'{source}: {name} is {problem}')


def _tensor_problem(tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return 'not a plain dense tensor'
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f'{tuple(tensor.shape)} numbers stretched over a smaller storage'
    return ''
