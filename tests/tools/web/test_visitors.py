"""What a visitor leaves behind: nothing."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from support.cli import UserError
from support.prediction.inputs import Picture, Source
from support.web import visitors as module
from support.web.finder import Found
from support.web.views import View
from support.web.visitors import Visitor, Visitors


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / 'example.png').write_bytes(b'example')
    return tmp_path


def upload(root: Path, content: bytes = b'photo') -> str:
    """As Gradio puts it: equal content at an equal place."""
    path = root / content.hex() / 'photo.png'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return str(path)


def files(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob('*') if path.is_file())


def show(visitor: Visitor) -> dict[str, str]:
    picture = Picture(Source('photo.png'), np.zeros((2, 2, 3), np.uint8))
    visitor.found = Found(picture, None, 0.0)
    return visitor.write(View({'.png': b'drawn', '.json': b'{}'}, [], '', ''))


def test_all_of_a_visitor_goes_and_the_examples_stay(root: Path) -> None:
    visitors = Visitors(root)
    visitor = visitors.get('a')
    visitors.uploaded(visitor, upload(root))
    show(visitor)
    assert files(root) == ['example.png', 'photo.found.json', 'photo.found.png', 'photo.png']
    visitors.leave('a')
    assert list(root.iterdir()) == [root / 'example.png']
    assert not visitors.is_open('a')


def test_an_example_is_no_upload(root: Path) -> None:
    visitors = Visitors(root)
    visitors.uploaded(visitors.get('a'), str(root / 'example.png'))
    visitors.leave('a')
    assert files(root) == ['example.png']


def test_a_file_from_elsewhere_is_no_upload(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    visitors = Visitors(root)
    outside = tmp_path_factory.mktemp('outside') / 'secret.png'
    outside.write_bytes(b'secret')
    (root / 'link.png').symlink_to(outside)
    for path in (outside, root / 'link.png', root / 'no.png', root, root / '..' / outside.name):
        with pytest.raises(UserError, match='no upload'):
            visitors.uploaded(visitors.get('a'), str(path))
        visitors.uploaded(visitors.get('a'), None)
    visitors.leave('a')
    assert outside.read_bytes() == b'secret'


def test_the_next_upload_replaces_the_one_before_and_what_was_shown(root: Path) -> None:
    visitors = Visitors(root)
    visitor = visitors.get('a')
    visitors.uploaded(visitor, upload(root))
    show(visitor)
    visitors.uploaded(visitor, upload(root, b'another'))
    assert files(root) == ['example.png', 'photo.png']
    assert visitor.found is None
    visitors.uploaded(visitor, None)
    assert files(root) == ['example.png']


def test_two_visitors_of_one_picture_do_not_lose_it_to_each_other(root: Path) -> None:
    visitors = Visitors(root)
    for session in 'ab':
        visitors.uploaded(visitors.get(session), upload(root))
    visitors.leave('a')
    assert 'photo.png' in files(root)
    visitors.leave('b')
    assert files(root) == ['example.png']


def test_an_upload_that_came_again_meanwhile_stays(root: Path) -> None:
    visitors = Visitors(root)
    path = upload(root)
    visitors.uploaded(visitors.get('a'), path)
    later = time.time() + 1
    os.utime(path, (later, later))  # another's, of which nothing is known yet
    visitors.leave('a')
    assert 'photo.png' in files(root)


def test_uploads_that_nobody_asked_about_go_in_time(root: Path) -> None:
    visitors = Visitors(root)
    fresh, old = upload(root, b'fresh'), upload(root, b'old')
    used = upload(root, b'used')
    visitors.uploaded(visitors.get('b'), used)
    long_ago = time.time() - module.LINGER - 1
    os.utime(old, (long_ago, long_ago))
    os.utime(used, (long_ago, long_ago))
    visitors.leave('a')
    assert [os.path.exists(path) for path in (fresh, old, used)] == [True, False, True]


def test_each_drawing_has_a_name_of_its_own_and_only_the_last_two_are_kept(root: Path) -> None:
    visitor = Visitors(root).get('a')
    shown = [show(visitor)['.png'] for _ in range(4)]
    assert len(set(shown)) == 4
    assert [os.path.exists(path) for path in shown] == [False, False, True, True]


def test_memory_is_for_so_many_visitors(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, 'MOST', 2)
    visitors = Visitors(root)
    for session in 'aba':
        show(visitors.get(session))
    visitors.get('c')
    assert [visitors.is_open(session) for session in 'abc'] == [True, False, True]
    assert len([path for path in root.iterdir() if path.is_dir()]) == 2
