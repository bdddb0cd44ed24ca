"""Damaged files: never a crash without a message, a silent partial load, or code that runs.

Seeds are fixed. Whatever a mutation does, loading ends in one of two ways: the model holds exactly
what the file says, for every name; or one line says why not, and the model is as before.
"""

import pickle
import random
import struct
import zipfile

import pytest
import torch
from released_files import MINI, imagenet_file, numbered
from safetensors.torch import save

from backbone import RMT
from backbone.weights.layout import split_backbone
from backbone.weights.match import load_backbone
from backbone.weights.read import CheckpointError, read_checkpoint, state_dict_in

RUNS = 60
MODEL = RMT(MINI)
BEFORE = {name: tensor.clone() for name, tensor in MODEL.state_dict().items()}


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
    for name, tensor in MODEL.state_dict().items():
        if name in kept or not name.startswith('extra_norms.'):
            value = kept.get(name)
            if value is None:
                assert name.endswith('.num_batches_tracked'), name
            else:
                expected = value.to(tensor.dtype)
                assert torch.equal(tensor, expected) or expected.isnan().any(), name
    return ''


@pytest.fixture(scope='module')
def originals(tmp_path_factory):
    """The bytes of the same weights in three formats."""
    folder = tmp_path_factory.mktemp('originals')
    file = imagenet_file(MODEL)
    file['optimizer'] = {'state': {}}
    del file['model_ema']
    torch.save(file, folder / 'zip')
    torch.save(file, folder / 'legacy', _use_new_zipfile_serialization=False)
    (folder / 'safetensors').write_bytes(save(numbered(MODEL)))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- bytes ---------------------------------------------------------------------------------------


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, insert, delete, cut, or repeat some bytes; most of them where the structure is."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        span = rng.choice([len(data), min(len(data), 40_000)])
        at = rng.randrange(span) if rng.random() < 0.7 else len(data) - 1 - rng.randrange(span)
        size = rng.choice([1, 1, 2, 8, 100])
        what = rng.randrange(5)
        if what == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            data[at:at] = rng.randbytes(size)
        elif what == 2:
            del data[at : at + size]
        elif what == 3:
            del data[at:]
        else:
            data[at:at] = data[at : at + size]
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize('kind', ['zip', 'legacy', 'safetensors'])
def test_mutated_bytes(kind, originals, tmp_path):
    path = tmp_path / 'weights.pth'
    outcomes = []
    for seed in range(RUNS):
        path.write_bytes(mutate_bytes(originals[kind], random.Random(seed)))
        outcomes.append(load(str(path)))
    assert sum(map(bool, outcomes)) > RUNS / 4


@pytest.mark.parametrize('pickled', [True, False])
def test_mutated_pickle_in_a_sound_archive(pickled, originals, tmp_path):
    """The archive's checksums are right, so torch's unpickler sees every mutation."""
    source = tmp_path / 'source'
    source.write_bytes(originals['zip'])
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    target = next(name for name in members if name.endswith('data.pkl'))
    path = tmp_path / 'weights.pth'
    outcomes = []
    for seed in range(RUNS):
        rng = random.Random(seed)
        changed = bytearray(members[target])
        if pickled:  # opcodes for opcodes
            for _ in range(rng.choice([1, 3, 10])):
                changed[rng.randrange(len(changed))] = rng.choice(b'cbR()}]NJKXqhtus.\x81\x85\x86Q')
        else:
            changed = bytearray(mutate_bytes(bytes(changed), rng))
        with zipfile.ZipFile(path, 'w') as archive:
            for name, content in members.items():
                archive.writestr(name, bytes(changed) if name == target else content)
        outcomes.append(load(str(path)))
    assert sum(map(bool, outcomes)) > RUNS / 2


# --- names, shapes, types ------------------------------------------------------------------------


def mutate_weights(weights: dict, rng: random.Random) -> dict:
    """One change that makes the weights wrong."""
    weights = dict(weights)
    name = rng.choice([n for n in weights if 'num_batches' not in n and 'extra' not in n])
    tensor = weights.pop(name)
    what = rng.randrange(12)
    if what == 1:
        weights[name[: rng.randrange(len(name))]] = tensor
    elif what == 2:
        weights[name.replace('.', rng.choice(['', '..', '/', '_']), 1)] = tensor
    elif what == 3:
        weights[name] = tensor.flatten()[: rng.randrange(tensor.numel())].clone()
    elif what == 4:
        weights[name] = tensor[None]
    elif what == 5:
        weights[name] = tensor.to(
            rng.choice([torch.int64, torch.bool, torch.complex64, torch.uint8])
        )
    elif what == 6:
        weights[name] = rng.choice([None, 3, 'text', [tensor], {'x': tensor}])
    elif what == 7:
        weights[name] = tensor.to_sparse()
    elif what == 8:
        weights[name] = torch.ones(1).expand(tensor.shape) if tensor.numel() > 1 else tensor[None]
    elif what == 9:
        weights = {
            f'{rng.choice(["backbon.", "module", "encoder."])}{n}': t for n, t in weights.items()
        }
    elif what == 10:
        weights[rng.choice([3, (1, 2), 1.5, b'x'])] = tensor
    elif what == 11:
        weights.update({name: tensor, f'layers.{rng.randrange(9)}.{rng.random()}': tensor})
    return weights


@pytest.mark.parametrize('wrap', ['bare', 'model', 'state_dict'])
def test_wrong_weights_are_always_refused(wrap, tmp_path):
    path = tmp_path / 'weights.pth'
    for seed in range(RUNS):
        weights = mutate_weights(numbered(MODEL), random.Random(seed))
        torch.save(weights if wrap == 'bare' else {wrap: weights}, path)
        assert load(str(path)), seed


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


def test_sound_files_are_taken(originals, tmp_path):
    for kind, content in originals.items():
        path = tmp_path / kind
        path.write_bytes(content)
        assert load(str(path)) == ''
