"""tools/support/prediction/places.py: a place a result, and nothing lost."""

from pathlib import Path

import pytest
from support import cli
from support.prediction import places
from support.prediction.inputs import Source


def planned(names: list[str], **options: object) -> places.Places:
    sources = [Source(name, camera=name.isdecimal()) for name in names]
    options = dict(out_dir='out', coco=None, label_maps=True) | options
    return places.plan(sources, **options)


def test_results_of_one_name_have_a_place_each() -> None:
    names = ['in/a/1.jpg', 'in/b/1.jpg', 'in/b/1.png', 'in/b/1.mp4', 'in/b/1.avi', '0', '1']
    where = planned(names)
    assert {name: str(path) for name, path in where.pictures.items()} == {
        'in/a/1.jpg': 'out/a/1.jpg.png',
        'in/b/1.jpg': 'out/b/1.jpg.png',
        'in/b/1.png': 'out/b/1.png.png',
        'in/b/1.mp4': 'out/b/1.mp4.mp4',
        'in/b/1.avi': 'out/b/1.avi.mp4',
        '0': 'out/camera_0.mp4',
        '1': 'out/camera_1.mp4',
    }
    assert str(where.labels['in/b/1.png']) == 'out/b/1.png.labels.png'
    assert str(where.labels['in/b/1.mp4']) == 'out/b/1.mp4.labels'
    assert len(set(where.all())) == 2 * len(names) + 1


def test_label_maps_and_coco_have_a_place_where_they_are_wanted() -> None:
    where = planned(['a/1.jpg'], label_maps=False)
    assert (where.labels, where.coco) == ({}, None)
    assert planned(['a/1.jpg'], coco='x/coco.json').coco == Path('x/coco.json')


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'out').mkdir()
    return tmp_path


@pytest.mark.parametrize(
    'taken', ['predictions.json', 'b.jpg.png', 'b.jpg.labels.png', 'coco.json']
)
def test_what_an_earlier_run_left_is_overwritten_only_when_told_to(
    taken: str, folder: Path
) -> None:
    where = planned(['a/b.jpg'], coco='out/coco.json')
    sources = [Source('a/b.jpg')]
    (folder / 'out/another.png').touch()
    places.check(where, sources, 'out', overwrite=False)
    (folder / 'out' / taken).touch()
    with pytest.raises(cli.UserError, match=f'^out/{taken} is there already; .*--overwrite$'):
        places.check(where, sources, 'out', overwrite=False)
    places.check(where, sources, 'out', overwrite=True)


@pytest.mark.parametrize('overwrite', [False, True])
def test_an_input_is_never_overwritten(overwrite: bool, folder: Path) -> None:
    names = ['out/a.jpg', 'out/a.jpg.png']
    for name in names:
        Path(name).touch()
    with pytest.raises(cli.UserError, match='would be an image to predict too'):
        places.check(planned(names), list(map(Source, names)), 'out', overwrite)


@pytest.mark.parametrize('names', [['in/a', 'in/a.labels'], ['in/a.labels', 'in/a']])
def test_two_results_never_share_a_place(names: list[str], folder: Path) -> None:
    with pytest.raises(cli.UserError, match='would be a result of another image too'):
        places.check(planned(names), list(map(Source, names)), 'out', overwrite=True)


@pytest.mark.parametrize(('out', 'coco', 'option'), [('f/x', None, 'out-dir'), ('x', 'f/c', 'co')])
def test_a_place_that_cannot_be_written_is_refused(
    out: str, coco: str | None, option: str, folder: Path
) -> None:
    (folder / 'f').touch()
    where = planned(['a.jpg'], out_dir=out, coco=coco)
    with pytest.raises(cli.UserError, match=f'^--{option}.*f is no folder'):
        places.check(where, [Source('a.jpg')], out, overwrite=False)
