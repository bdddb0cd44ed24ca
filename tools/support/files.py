"""Writing files: whole or not at all, where they can be written, each under a name of its own."""

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from support.cli import UserError


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


def check_file(path: str | os.PathLike, option: str) -> None:
    """Whether a file can be written at ``path``, now rather than after an hour; makes nothing.

    Raises:
        UserError: it cannot; the line begins with the ``option`` that named the path.
    """
    if os.path.isdir(path):
        raise UserError(f'{option} {path}: is a folder; name a file')
    _check(path, Path(path).absolute().parent, option)


def check_folder(path: str | os.PathLike, option: str) -> None:
    """Whether files can be written in the folder ``path``, which may yet be made.

    Raises:
        UserError: as :func:`check_file`.
    """
    _check(path, Path(path).absolute(), option)


def _check(path: str | os.PathLike, folder: Path, option: str) -> None:
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f'{option} {path}: {folder} is no folder; name another place')
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f'{option} {path}: nothing can be written in {folder} ({error.strerror}); name '
            'another place'
        ) from error


def picture_names(paths: Iterable[str], rename: Callable[[str], str]) -> dict[str, str]:
    """For each image the place of its picture below a folder, no two the same.

    Args:
        paths: of the images, which may have equal names in several folders.
        rename: makes the picture's name of the image's path below the folder that all images
            share; if that gives two images one name, ``.png`` is appended to every path instead.
    """
    paths = {path: os.path.abspath(path) for path in paths}
    if not paths:
        return {}
    shared = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
    below = {path: os.path.relpath(place, shared) for path, place in paths.items()}
    names = {path: rename(name) for path, name in below.items()}
    if len(set(names.values())) < len(set(below.values())):
        names = {path: f'{name}.png' for path, name in below.items()}
    return names
