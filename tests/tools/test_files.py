"""A file is written whole or not at all, where it can be, and pictures keep apart."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli import UserError
from support.files import atomic_write, check_file, check_folder, picture_names


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


@pytest.mark.parametrize('check', [check_file, check_folder])
def test_a_place_that_can_be_written_is_left_as_it_is(check: Callable, tmp_path: Path) -> None:
    check(tmp_path / 'new/folder/out.pkl', '--out')
    (tmp_path / 'link').symlink_to(tmp_path)
    check(tmp_path / 'link/out.pkl', '--out')
    assert [path.name for path in tmp_path.iterdir()] == ['link']


def test_what_is_there_already_may_be_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'out.pkl').write_text('old')
    check_file(tmp_path / 'out.pkl', '--out')
    check_folder(tmp_path, '--out-dir')
    monkeypatch.chdir(tmp_path)
    check_file('out.pkl', '--out')
    check_folder('.', '--out-dir')


@pytest.mark.parametrize('check', [check_file, check_folder])
@pytest.mark.parametrize(
    ('place', 'why'),
    [
        ('file/out.pkl', 'file is no folder'),
        ('file/deeper/out.pkl', 'file is no folder'),
        ('astray/out.pkl', 'astray is no folder'),
        ('/proc/rmt/out.pkl', 'nothing can be written in /proc'),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_with_its_option(
    check: Callable, place: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / 'file').write_text('')
    (tmp_path / 'astray').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(UserError, match=why) as error:
        check(tmp_path / place, '--option')
    assert str(error.value).startswith(f'--option {tmp_path / place}: ')


def test_a_file_where_a_folder_is_wanted_and_the_other_way_round(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='is no folder'):
        check_folder(tmp_path / 'file', '--out-dir')
    with pytest.raises(UserError, match='is a folder'):
        check_file(tmp_path, '--out')


@pytest.mark.parametrize(
    ('images', 'pictures'),
    [
        (['/d/x.jpg'], ['x.png']),
        (['/d/x.jpg', '/d/y.jpg'], ['x.png', 'y.png']),
        (['/d/a/x.jpg', '/d/b/x.jpg'], ['a/x.png', 'b/x.png']),
        (['/d/x.jpg', '/d/x.png', '/d/y.jpg'], ['x.jpg.png', 'x.png.png', 'y.jpg.png']),
        (['/d/x.jpg', '/d/a/x.jpg', '/d/a/../x.jpg'], ['x.png', 'a/x.png', 'x.png']),
        ([], []),
    ],
)
def test_no_two_images_have_one_picture(images: list[str], pictures: list[str]) -> None:
    names = picture_names(images, lambda name: os.path.splitext(name)[0] + '.png')
    assert names == dict(zip(images, pictures, strict=True))


def test_pictures_of_relative_paths_are_named_like_those_of_absolute_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = ['a/x.jpg', str(tmp_path / 'b/x.jpg')]
    assert list(picture_names(images, str).values()) == ['a/x.jpg', 'b/x.jpg']
