"""A file is written whole or not at all."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.files import atomic_write


def by_function(path: Path) -> None:
    assert path.suffix == '.txt'
    path.write_text('new ×')


@pytest.mark.parametrize(
    'content', ['new ×', 'new ×'.encode(), by_function], ids=['text', 'bytes', 'function']
)
@pytest.mark.parametrize('before', [None, 'old'])
def test_writes_over_what_is_there(
    content: str | bytes | Callable, before: str | None, tmp_path: Path
) -> None:
    path = tmp_path / 'file.txt'
    if before:
        path.write_text(before)
    atomic_write(path, content)
    assert path.read_text(encoding='utf-8') == 'new ×'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('error', [OSError('disk full'), KeyboardInterrupt()])
def test_failure_leaves_the_old_file_and_no_part_of_the_new(
    error: BaseException, tmp_path: Path
) -> None:
    path = tmp_path / 'file.txt'
    path.write_text('old')

    def fail(beside: Path) -> None:
        beside.write_text('half')
        raise error

    with pytest.raises(type(error)):
        atomic_write(path, fail)
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_failure_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        atomic_write(tmp_path / 'file.txt', '\ud800')
    assert not list(tmp_path.iterdir())
