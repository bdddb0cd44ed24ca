"""tools/support/prediction/json_file.py: whole, whatever ends the writing."""

import io
import json
from pathlib import Path

import pytest
from support.prediction.json_file import JsonFile

NESTED = {'a': [1, {'b': [2.5, None]}], 'ü': [], 'c': {}}


@pytest.mark.parametrize('value', [{}, NESTED, dict(x='"]}')])
def test_an_object_is_what_json_itself_would_write(value: dict, tmp_path: Path) -> None:
    path = tmp_path / 'found.json'
    with JsonFile(path) as file:
        for key, each in value.items():
            file.add(each, key)
        assert not path.exists()
    assert path.read_text() == json.dumps(value, indent=1)
    assert list(tmp_path.iterdir()) == [path]


def test_lists_inside_an_object_grow_by_entries(tmp_path: Path) -> None:
    path = tmp_path / 'found.json'
    with JsonFile(path) as file:
        file.add(0, 'first')
        with file.list('many'):
            file.add({'x': 1})
            file.add(2)
        with file.list('none'):
            pass
        file.add(3, 'last')
    value = {'first': 0, 'many': [{'x': 1}, 2], 'none': [], 'last': 3}
    assert path.read_text() == json.dumps(value, indent=1)


def test_a_list_has_entries_without_keys(tmp_path: Path) -> None:
    with JsonFile(tmp_path / 'all.json', '[]') as file:
        file.add(1)
        file.add({'a': 2})
    assert json.loads((tmp_path / 'all.json').read_text()) == [1, {'a': 2}]


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_an_interruption_closes_all_that_is_open(error: type, tmp_path: Path) -> None:
    path = tmp_path / 'found.json'

    def write() -> None:
        with JsonFile(path) as file:
            file.add(1, 'first')
            with file.list('many'):
                file.add(2)
                file.add(3)
                raise error

    with pytest.raises(error):
        write()
    assert json.loads(path.read_text()) == {'first': 1, 'many': [2, 3]}


class FullOnce(io.FileIO):
    """A file on a disk that is full for one write, of which a part gets through."""

    full = False

    def write(self, content: bytes) -> int:
        if not self.full:
            return super().write(content)
        self.full = False
        super().write(content[:9])
        raise OSError(28, 'No space left on device')


def test_a_torn_entry_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'found.json'
    monkeypatch.setattr(Path, 'open', lambda self, mode: FullOnce(self, mode))

    def write() -> None:
        with JsonFile(path) as file:
            file.add(1, 'first')
            file._file.full = True
            file.add('long enough', 'second')

    with pytest.raises(OSError, match='No space'):
        write()
    assert path.read_bytes() == b'{\n "first": 1\n}'


def test_an_error_before_the_first_entry_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / 'found.json'
    path.write_text('{"of": "another run"}')
    with pytest.raises(ValueError, match='x'), JsonFile(path):
        raise ValueError('x')
    assert path.read_text() == '{"of": "another run"}'
    assert list(tmp_path.iterdir()) == [path]
