"""Address or path -> a file on this machine."""

import hashlib
import os
import re
import shutil
import uuid
from http.client import HTTPException
from typing import BinaryIO
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from mmengine.dist import barrier, is_distributed
from mmengine.logging import print_log

from .checkpoint import CheckpointError

_SECONDS = 60  # without a byte


def local_file(file: str | os.PathLike) -> str:
    """The path of a file; an ``http://`` or ``https://`` address is downloaded first, and once.

    Downloads lie in torch's cache, by names that depend on the whole address. In a distributed run
    all processes have to call it: one of each machine downloads, the others wait.

    Raises:
        CheckpointError: the download failed.
    """
    file = os.fspath(file)
    if not re.match(r'https?://', file):
        return os.path.expanduser(file)
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    name = os.path.basename(urlparse(file).path) or 'unnamed'
    stem, ending = os.path.splitext(name)
    digest = hashlib.sha256(file.encode()).hexdigest()[:16]
    path = os.path.join(folder, f'{stem[:100]}-{digest}{ending[:20]}')
    if _has_digest_of_its_name(os.path.join(folder, name)):  # downloaded by torch or mmengine
        path = os.path.join(folder, name)

    failure = None
    first = not is_distributed() or os.environ.get('LOCAL_RANK', '0') == '0'
    if first and not os.path.exists(path):
        try:
            _download(file, path)
        except CheckpointError as error:
            failure = error
    barrier()
    if failure is not None:
        raise failure
    if not os.path.exists(path):
        raise CheckpointError(f"{file}: download failed in this machine's first process")
    return path


def _has_digest_of_its_name(path: str) -> bool:
    """Whether a file is there and is what its name says, ``NAME-<start of SHA-256>.pth``."""
    found = re.search(r'-([0-9a-f]{8,64})\.\w+$', path)
    if not found or not os.path.isfile(path):
        return False
    with open(path, 'rb') as file:
        return sha256_of(file).startswith(found[1])


def _download(address: str, path: str) -> None:
    """Write beside ``path``, and put it there whole."""
    beside = f'{path}.{uuid.uuid4().hex}.partial'
    print_log(f'downloading {address} to {path}', 'current')
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        request = Request(address, headers={'User-Agent': 'torch.hub'})
        with urlopen(request, timeout=_SECONDS) as answer, open(beside, 'wb') as file:
            shutil.copyfileobj(answer, file, 1 << 20)
            length = answer.headers.get('Content-Length')
            if length is not None and int(length) != file.tell():
                raise OSError(f'{file.tell():,} of {int(length):,} bytes came')
        os.replace(beside, path)
    except (OSError, ValueError, HTTPException) as error:
        raise CheckpointError(f'{address}: download failed ({error})') from error
    finally:
        if os.path.exists(beside):
            os.unlink(beside)


def sha256_of(file: BinaryIO) -> str:
    """SHA-256 of a whole open file in hex; leaves it at its beginning."""
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):  # hashlib.file_digest is not in Python 3.10
        digest.update(chunk)
    file.seek(0)
    return digest.hexdigest()
