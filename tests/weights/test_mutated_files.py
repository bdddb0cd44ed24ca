"""Damaged files: never a crash without a message, a silent partial load, or code that runs.

Seeds are fixed. Whatever a mutation does, loading ends in one of two ways: the model holds exactly
what the file says, for every name; or one line says why not, and the model is as before.
"""

import pickle
import random
import struct
from collections import Counter

import pytest
import torch
from mutations import FORMATS, assert_arrived, mutated_file, packed
from released_files import MINI, imagenet_file, numbered

from backbone import RMT
from backbone.weights.checkpoint import CheckpointError
from backbone.weights.layout import split_backbone
from backbone.weights.match import load_backbone
from backbone.weights.read import read_checkpoint, state_dict_in

MODEL = RMT(MINI)
BEFORE = {name: tensor.clone() for name, tensor in MODEL.state_dict().items()}
SEEDS = [
    pytest.param(range(8), id='some'),
    pytest.param(range(8, 120), id='all', marks=pytest.mark.slow),
]


def load(path: str) -> str:
    """Load and check the outcome; returns the refusal, or '' where the file was taken."""
    MODEL.load_state_dict(BEFORE)
    try:
        load_backbone(MODEL, path)
    except CheckpointError as error:
        message = str(error)
        assert message.startswith(f'{path}: ')
        assert '\n' not in message
        assert len(message) < 2000
        for name, tensor in MODEL.state_dict().items():
            assert torch.equal(tensor, BEFORE[name]), name
        return message
    kept, _ = split_backbone(state_dict_in(read_checkpoint(path), path))
    assert_arrived(MODEL.state_dict(), kept, but='extra_norms.')
    return ''


def original() -> dict:
    """A released ImageNet file's content, its weights where a safetensors file has them."""
    file = imagenet_file(MODEL)
    del file['model_ema']
    return {**file, 'state_dict': file.pop('model'), 'optimizer': {'state': {}}, 'meta': {}}


@pytest.mark.parametrize('seeds', SEEDS)
@pytest.mark.parametrize('what', ['bytes', 'pickle', 'weights', 'meta', 'code'])
def test_mutated_files_are_taken_whole_or_refused(what, seeds, tmp_path):
    path, marker = tmp_path / 'weights.pth', tmp_path / 'it-ran'
    outcomes = Counter()
    for seed in seeds:
        path.write_bytes(mutated_file(original(), random.Random(seed), marker, what)[1])
        outcomes['refused' if load(str(path)) else 'taken'] += 1
        assert not marker.exists(), seed
    print(what, dict(outcomes))
    if what == 'weights':  # each of these changes makes them wrong
        assert outcomes['taken'] == 0
    if what != 'meta':
        assert outcomes['refused'] > len(seeds) / 5


@pytest.mark.parametrize('content', [
    pickle.dumps({'a': 1}, 2) * 3,
    b'\x80\x02' + b'(' * 5000 + b'.',
    b'\x80\x02' + b']' * 20000 + b'a' * 19999 + b'.',
    b'\x80\x02X' + struct.pack('<I', 2**32 - 1) + b'abc',
    b'PK\x03\x04' + b'PK\x05\x06' + b'\0' * 18,
    struct.pack('<Q', 40) + b'{' * 41,
    struct.pack('<Q', 2) + b'{}',
])  # fmt: skip
def test_crafted_beginnings(content, tmp_path):
    path = tmp_path / 'weights.pth'
    path.write_bytes(content)
    assert load(str(path))


def test_deeply_nested_and_repeated_data_is_no_trap(tmp_path):
    path = str(tmp_path / 'weights.pth')
    shared = []
    for _ in range(60):  # 2**60 lists if each were visited each time
        shared = [shared, shared]
    torch.save({'model': numbered(MODEL), 'extra': shared}, path)
    assert load(path) == ''


@pytest.mark.parametrize('layout', FORMATS)
def test_sound_files_are_taken(layout, tmp_path):
    path = tmp_path / 'weights.pth'
    path.write_bytes(packed(original(), layout))
    assert load(str(path)) == ''
