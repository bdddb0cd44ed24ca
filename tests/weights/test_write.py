"""A file is written whole, or refused and nothing is left of it."""

import sys

import pytest
import torch

from backbone.weights.checkpoint import Checkpoint, CheckpointError
from backbone.weights.layout import recognise
from backbone.weights.read import read_checkpoint, sha256_of_tensors
from backbone.weights.write import progress, write_checkpoint

TENSORS = {'w': torch.arange(4.0)}
META = {'rmt': {'tensors_sha256': sha256_of_tensors(TENSORS)}}
LAYOUTS = ['pth', 'safetensors']


def write(path, layout, meta=META):
    write_checkpoint(str(path), TENSORS, meta, layout, recognise(TENSORS))


@pytest.mark.parametrize('layout', LAYOUTS)
def test_what_is_written_takes_the_place_of_what_was_there(layout, tmp_path):
    path = tmp_path / 'a.pth'
    path.write_text('old')
    write(path, layout)
    found = read_checkpoint(path)
    assert torch.equal(found['state_dict']['w'], TENSORS['w'])
    assert found['meta'] == META
    assert [each.name for each in tmp_path.iterdir()] == ['a.pth']


def fails(path, layout, meta=META) -> str:
    """The message of a failure; checks that it leaves the old file and no other."""
    path.write_text('old')
    with pytest.raises(CheckpointError) as caught:
        write(path, layout, meta)
    assert path.read_text() == 'old'
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert str(caught.value).startswith(f'{path}: ')
    return str(caught.value)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_what_reads_back_differently_is_not_put_in_place(layout, tmp_path):
    other = {'rmt': {'tensors_sha256': sha256_of_tensors({'w': torch.zeros(4)})}}
    words = {'pth': 'reads back differently', 'safetensors': 'fail their checksum'}
    assert words[layout] in fails(tmp_path / 'a.pth', layout, other)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r'none/a\.pth: cannot be written \('):
        write(tmp_path / 'none/a.pth', 'pth')


def test_without_safetensors_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    assert 'needs `pip install safetensors`' in fails(tmp_path / 'a.safetensors', 'safetensors')


@pytest.mark.parametrize(('content', 'expected'), [
    ({'epoch': 12, 'iter': 1000}, {'epoch': 12, 'iter': 1000}),
    ({'meta': {'epoch': 12}}, {'epoch': 12}),
    ({'epoch': 3, 'meta': {'epoch': 12, 'rmt': {'epoch': 5, 'iter': 7}}}, {'epoch': 3, 'iter': 7}),
    ({'meta': {'epoch': 0, 'iter': 80_000}}, {'iter': 80_000}),  # counted in iterations
    ({'meta': {'epoch': 0, 'iter': 0}}, {'epoch': 0, 'iter': 0}),
    ({'epoch': 0}, {'epoch': 0}),
    ({'epoch': '3', 'iter': None}, {}),
    ({}, {}),
])  # fmt: skip
def test_progress_is_what_the_file_says_first(content, expected):
    assert progress(Checkpoint(content)) == expected
