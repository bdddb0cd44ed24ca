"""Writing files so that an interrupted or failed write leaves what was there."""

import os
from collections.abc import Callable
from pathlib import Path


def atomic_write(path: str | os.PathLike, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file beside its place, then put it there whole.

    Args:
        content: text (as UTF-8), bytes, or a function that writes the file whose path it is given;
            that path has the suffix of ``path``, by which some libraries choose the format.
    """
    path = Path(path)
    beside = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
    try:
        if callable(content):
            content(beside)
        else:
            beside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
