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
from released_files import MINI, MINI_RAVLT, imagenet_file, numbered

from backbone import RAVLT, RMT
from backbone.network import Network
from backbone.weights.checkpoint import CheckpointError
from backbone.weights.families import family_in
from backbone.weights.layout import split_backbone
from backbone.weights.match import load_backbone
from backbone.weights.read import read_checkpoint, state_dict_in

MODEL, OTHER = RMT(MINI), RAVLT(MINI_RAVLT)
SEEDS = [
    pytest.param(range(8), id='some'),
    pytest.param(range(8, 120), id='all', marks=pytest.mark.slow),
]


def load(path: str, model: Network = MODEL) -> str:
    """Load and check the outcome; returns the refusal, or '' where the file was taken."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        load_backbone(model, path)
    except CheckpointError as error:
        message = str(error)
        assert message.startswith(f'{path}: ')
        assert '\n' not in message
        assert len(message) < 2000
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]) or before[name].isnan().any(), name
        return message
    given = family_in(model).from_released(state_dict_in(read_checkpoint(path), path))
    assert_arrived(model.state_dict(), split_backbone(given)[0], but='extra_norms.')
    return ''


def original(model: Network = MODEL) -> dict:
    """A released ImageNet file's content, its weights where a safetensors file has them."""
    file = imagenet_file(model)
    del file['model_ema']
    return {**file, 'state_dict': file.pop('model'), 'optimizer': {'state': {}}, 'meta': {}}


@pytest.mark.parametrize('seeds', SEEDS)
@pytest.mark.parametrize(
    ('what', 'model'),
    [(what, MODEL) for what in ('bytes', 'pickle', 'weights', 'meta', 'code')]
    + [(what, OTHER) for what in ('weights', 'meta')],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_mutated_files_are_taken_whole_or_refused(what, model, seeds, tmp_path):
    path, marker = tmp_path / 'weights.pth', tmp_path / 'it-ran'
    outcomes = Counter()
    for seed in seeds:
        file = mutated_file(original(model), random.Random(seed), marker, what)[1]
        path.write_bytes(file)
        outcomes['refused' if load(str(path), model) else 'taken'] += 1
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
