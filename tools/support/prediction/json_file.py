"""A JSON file that grows with what is found: neither memory nor an interruption limits it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any


class JsonFile:
    """An object or a list, written entry by entry beside its place and put there when closed.

    Whatever ends the writing, what lies there then is whole and holds every entry added before;
    where an error comes before the first entry, nothing is put there.

    Args:
        ends: ``{}`` for an object, whose entries have keys, or ``[]`` for a list.
    """

    def __init__(self, path: Path, ends: str = '{}') -> None:
        self.path = path
        self._beside = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
        self._ends = ends
        self._open: list[str] = []  # what closes each level
        self._filled = False  # whether the innermost level has an entry

    def __enter__(self) -> 'JsonFile':
        self._file = self._beside.open('wb')
        self._start('', self._ends)
        return self

    def add(self, value: Any, key: str | None = None) -> None:
        """Write an entry of the innermost level."""
        text = json.dumps(value, indent=1).replace('\n', '\n' + ' ' * len(self._open))
        self._write(self._lead(key) + text)
        self._filled = True

    @contextmanager
    def list(self, key: str) -> Iterator[None]:
        """What is added inside becomes a list below ``key``."""
        self._start(self._lead(key), '[]')
        yield
        self._finish()  # after an error `__exit__` does

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            something = self._filled or len(self._open) > 1
            self._file.truncate(self._whole)  # off with what an error has torn
            self._file.seek(self._whole)
            while self._open:
                self._finish()
        if something or error is None:
            os.replace(self._beside, self.path)
        else:
            self._beside.unlink()

    def _lead(self, key: str | None) -> str:
        name = '' if key is None else f'{json.dumps(key)}: '
        return (',' if self._filled else '') + '\n' + ' ' * len(self._open) + name

    def _start(self, lead: str, ends: str) -> None:
        self._write(lead + ends[0])
        self._open.append(ends[1])
        self._filled = False

    def _finish(self) -> None:
        end = self._open.pop()
        self._write(f'\n{" " * len(self._open)}{end}' if self._filled else end)
        self._filled = True

    def _write(self, text: str) -> None:
        self._file.write(text.encode())
        self._file.flush()
        self._whole = self._file.tell()
