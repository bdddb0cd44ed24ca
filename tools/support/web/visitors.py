"""What is kept of a visitor, in memory and on disk, and only while the page is open."""

import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path

from support.cli import UserError
from support.web.finder import Found
from support.web.views import View

MOST = 100
"""Visitors at once; one more, and the one who did nothing for longest starts anew."""
LINGER = 600.0
"""Seconds after which an upload that nobody asked about is removed."""


class Visitor:
    """A page that is open: its upload, what is found in it, and a folder for what is shown."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.upload: tuple[Path, int] | None = None
        self.found: Found | None = None
        self._views = 0

    def forget(self) -> None:
        """What was found and shown."""
        self.found = None
        for folder in self.folder.iterdir():
            shutil.rmtree(folder, ignore_errors=True)

    def write(self, view: View) -> dict[str, str]:
        """The view's files under names of their own, by suffix; what they replace is removed.

        A new name each time: browsers ask once for each name. The view before stays, in case its
        picture is still being fetched.
        """
        self._views += 1
        folder = self.folder / str(self._views)
        folder.mkdir()
        shutil.rmtree(self.folder / str(self._views - 2), ignore_errors=True)
        stem = f'{Path(self.found.picture.source.name).stem}.found'
        paths = {suffix: folder / f'{stem}{suffix}' for suffix in view.files}
        for suffix, path in paths.items():
            path.write_bytes(view.files[suffix])
        return {suffix: str(path) for suffix, path in paths.items()}


class Visitors:
    """Those whose page is open, by what the browser calls its session.

    Args:
        root: the folder into which uploads come; its files of now stay.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stay = set(root.rglob('*'))
        self._open: OrderedDict[str, Visitor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, session: str) -> Visitor:
        with self._lock:
            if session not in self._open:
                self._open[session] = Visitor(Path(tempfile.mkdtemp(dir=self._root)))
                while len(self._open) > MOST:
                    self._remove(next(iter(self._open)))
            self._open.move_to_end(session)
            return self._open[session]

    def is_open(self, session: str) -> bool:
        return session in self._open

    def leave(self, session: str) -> None:
        """Forget a visitor: what was uploaded, found and shown."""
        with self._lock:
            if session in self._open:
                self._remove(session)
            self._sweep()

    def uploaded(self, visitor: Visitor, path: str | None) -> None:
        """The visitor has another upload instead of the earlier one; None: no longer any.

        Raises:
            UserError: there is no such file among the uploads: a browser may name any path.
        """
        if path and not self._is_ours(Path(path)):
            raise UserError(f'{Path(path).name}: no upload')
        with self._lock:
            earlier, visitor.upload = visitor.upload, None
            visitor.forget()
            if path and Path(path) not in self._stay:
                visitor.upload = (Path(path), os.stat(path).st_mtime_ns)
            if earlier:
                self._unlink(*earlier)

    def _is_ours(self, path: Path) -> bool:
        return path.is_file() and path.resolve().is_relative_to(self._root.resolve())

    def _remove(self, session: str) -> None:
        visitor = self._open.pop(session)
        shutil.rmtree(visitor.folder, ignore_errors=True)
        if visitor.upload:
            self._unlink(*visitor.upload)

    def _unlink(self, path: Path, modified: int) -> None:
        """Remove an upload, unless another visitor uploaded the same, which has the same path."""
        if any(each.upload and each.upload[0] == path for each in self._open.values()):
            return
        try:
            if path.stat().st_mtime_ns == modified:
                path.unlink()
                path.parent.rmdir()
        except OSError:
            pass  # gone already, or another file is beside it

    def _sweep(self) -> None:
        """Remove uploads whose visitor left before asking anything of them."""
        folders = [visitor.folder for visitor in self._open.values()]
        used = {visitor.upload[0] for visitor in self._open.values() if visitor.upload}
        for path in self._root.glob('*/*'):
            if path in self._stay or path in used or path.parent in folders or not path.is_file():
                continue
            modified = path.stat().st_mtime_ns
            if time.time() - modified / 1e9 > LINGER:
                self._unlink(path, modified)
