"""No file makes the loader run code, crash without a line, or wait; honest files are read whole."""

import argparse
import functools
import io
import json
import os
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from released_files import MINI, imagenet_file, numbered
from safetensors.torch import save_file

from backbone import RMT
from backbone.weights import read
from backbone.weights.checkpoint import CheckpointError, first_few
from backbone.weights.read import read_checkpoint, sha256_of_tensors, state_dict_in

WEIGHTS = {'a': torch.arange(6.0).reshape(2, 3), 'b': torch.ones(4)}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'weights.pth')


def refusal(path) -> str:
    """The message a file is refused with; checks that it is one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f'{path}: ')
    assert '\n' not in message
    return message


def saved(data) -> bytes:
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()


def rewritten(data: bytes, change=lambda pkl: pkl, compression=zipfile.ZIP_STORED) -> bytes:
    """A torch file with its pickle changed and its members stored anew."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, 'w', compression) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith('data.pkl') else content)
    return out.getvalue()


def write(path, data: bytes) -> None:
    with open(path, 'wb') as file:
        file.write(data)


# --- files that are not weights ------------------------------------------------------------------

LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 51200\n'
ZIP_OF_TEXT = io.BytesIO()
with zipfile.ZipFile(ZIP_OF_TEXT, 'w') as archive:
    archive.writestr('readme.txt', 'hello')
BOMB = rewritten(saved({'a': torch.zeros(10**6)}), compression=zipfile.ZIP_DEFLATED)
FOREIGN = {
    'empty': (b'', 'the file is empty'),
    'html': (b'\n<!DOCTYPE html><html><title>Sign in</title>', 'an HTML page'),
    'lfs': (LFS, 'a git-lfs pointer'),
    'text': (b'{"error": "not found"}', 'a text file, not weights'),
    'gzip': (b'\x1f\x8b\x08\0\0\0', 'a gzip archive; unpack it'),
    'tar': (b'weights.pth'.ljust(257, b'\0') + b'ustar'.ljust(300, b'\0'), 'a tar archive'),
    'zip': (ZIP_OF_TEXT.getvalue(), 'a zip archive without weights'),
    'bomb': (BOMB, 'refused as a possible zip bomb, nothing was unpacked'),
    'image': (b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR', 'neither a PyTorch nor a safetensors file'),
    'zip cut short': (saved(WEIGHTS)[:900], 'truncated or damaged'),
    'zip head': (b'PK\x03\x04', 'truncated or damaged'),
    'pickle cut short': (pickle.dumps([1.5] * 99, 2)[:200], 'truncated or damaged'),
    'pickle of nothing': (pickle.dumps(3, 2), 'truncated or damaged'),
    'a list': (saved([torch.ones(2)]), 'holds one list, not a dict of weights'),
    'a tensor': (saved(torch.ones(2)), 'holds one Tensor'),
}


@pytest.mark.parametrize('name', FOREIGN)
def test_what_is_no_weights_file_is_refused_in_one_line(name, path):
    content, words = FOREIGN[name]
    write(path, content)
    assert words in refusal(path)


def test_no_file_a_directory_and_a_pipe(path, tmp_path):
    assert 'No such file' in refusal(path)
    assert 'is a directory' in refusal(str(tmp_path))
    os.mkfifo(path)
    assert 'is not a regular file' in refusal(path)


def test_no_permission(path, monkeypatch):
    write(path, saved(WEIGHTS))

    def deny(*_):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(read, 'open', deny, raising=False)  # root may read everything
    assert 'Permission denied' in refusal(path)


def test_an_archive_that_lies_about_its_size_is_refused(path):
    content = bytearray(saved(WEIGHTS))
    entry = content.rindex(b'PK\x01\x02')  # sizes stand at 20 and 24 of a directory entry
    content[entry + 20 : entry + 28] = struct.pack('<II', 10**9, 10**9)
    write(path, content)
    assert 'possible zip bomb' in refusal(path)


def test_a_flipped_bit_in_a_tensor_is_found(path):
    content = bytearray(saved(WEIGHTS))
    content[content.index(WEIGHTS['a'].numpy().tobytes())] ^= 1
    write(path, content)
    assert 'fails its checksum' in refusal(path)


def test_a_torchscript_program_is_refused(path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    assert 'a TorchScript program' in refusal(path)


# --- code ----------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(marker: str) -> dict:
    """name -> (what to pickle, what the refusal must name)."""
    make = f'open({marker!r}, "w").close()'
    shell = f'touch {marker}'
    buffer = HistoryBuffer([1.0], [1])
    return {
        'system': (Calls(os.system, shell), 'posix.system'),
        'eval': (Calls(eval, make), 'eval'),
        'exec': (Calls(exec, make), 'exec'),
        'import': (Calls(__import__, 'os'), '__import__'),
        'open': (Calls(open, marker, 'w'), 'io.open'),
        'partial': (Calls(functools.partial, os.system, shell), 'functools.partial'),
        'nested pickle': (Calls(pickle.loads, b'.'), 'pickle.loads'),
        'bytes of torch': (
            Calls(torch.storage._load_from_bytes, b''),
            'torch.storage._load_from_bytes',
        ),
        'getattr': (Calls(getattr, np.ndarray, 'tofile'), 'getattr'),
        'getattr of a buffer': (Calls(getattr, HistoryBuffer, '__init__'), 'getattr'),
        'a module': (torch.nn.Linear(2, 2), 'torch.nn.modules.linear.Linear'),
        'deep inside': ([{'x': (argparse.Namespace(y=Calls(eval, make)),)}], 'eval'),
        'in the hub': ({'log_scalars': {'loss': buffer, 'x': Calls(eval, make)}}, 'eval'),
    }


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('name', attacks(''))
def test_code_is_refused_by_name_and_does_not_run(name, legacy, path, tmp_path):
    marker = tmp_path / 'it-ran'
    payload, named = attacks(str(marker))[name]
    torch.save(
        {'state_dict': WEIGHTS, 'extra': payload}, path, _use_new_zipfile_serialization=not legacy
    )
    message = refusal(path)
    assert not marker.exists()
    assert f'refused, it asks for {named}' in message
    assert 'torch.load(..., weights_only=False)' in message


def test_a_history_buffer_brings_no_methods_of_its_own(path, monkeypatch):
    own = dict(HistoryBuffer._statistics_methods)
    with monkeypatch.context() as patch:
        foreign = {'mean': torch.Size, 'sum': torch.device}
        patch.setattr(
            HistoryBuffer,
            '__getstate__',
            lambda self: {**vars(self), 'statistics_methods': foreign},
        )
        torch.save({'w': torch.ones(1), 'x': HistoryBuffer([1.0, 2.0], [1, 1])}, path)
    buffer = read_checkpoint(path)['x']
    assert HistoryBuffer._statistics_methods == own
    assert buffer.statistics('mean') == 1.5


@pytest.mark.parametrize('kind', [b'O8', b'V8', b'M8', b'i8,O'])
def test_numpy_arrays_of_objects_are_refused(kind, path):
    plain = saved({'x': np.zeros(1)})
    spelled = b'X' + struct.pack('<I', len(kind)) + kind
    write(path, rewritten(plain, lambda pkl: pkl.replace(b'X\x02\0\0\0f8', spelled)))
    assert 'numpy dtype' in refusal(path)


# --- honest files --------------------------------------------------------------------------------


@pytest.mark.parametrize('legacy', [False, True])
def test_weights_and_the_released_extras_are_read(legacy, path):
    data = {'model': WEIGHTS, 'args': argparse.Namespace(lr=1e-3, sizes=[1, 2]), 'epoch': 299}
    torch.save(data, path, _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(path)
    assert checkpoint.source == path
    assert checkpoint['args'] == data['args']
    assert all(torch.equal(checkpoint['model'][name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize('core', ['numpy.core', 'numpy._core'])
def test_numpy_and_message_hub_are_restored_whichever_numpy_wrote_them(core, path):
    hub = MessageHub('test_read')
    for value in (1.0, 2.0, 6.0):
        hub.update_scalar('loss', value)
    shared = np.arange(6, dtype='>i4').reshape(2, 3)
    data = {
        'message_hub': hub.state_dict(),
        'arrays': [shared, (shared, {'f': np.asfortranarray(np.eye(3, 2))})],
        'others': {
            'text': np.array(['ab', 'c']),
            'empty': np.zeros((0, 2)),
            'bool': np.ones(2, bool),
        },
        'scalar': np.float32(2.5),
    }
    write(path, rewritten(
        saved(data), lambda pkl: pkl.replace(b'cnumpy._core.', f'c{core}.'.encode())
    ))  # fmt: skip
    checkpoint = read_checkpoint(path)
    loss = checkpoint['message_hub']['log_scalars']['loss']
    assert type(loss) is HistoryBuffer
    assert loss.statistics('mean') == 3
    assert loss.current() == 6
    first, (second, rest) = checkpoint['arrays']
    assert first is second
    assert first.dtype == shared.dtype
    np.testing.assert_array_equal(first, shared)
    np.testing.assert_array_equal(rest['f'], np.eye(3, 2))
    for name, array in data['others'].items():
        np.testing.assert_array_equal(checkpoint['others'][name], array)
    assert checkpoint['scalar'] == np.float32(2.5)
    MessageHub('test_read_2').load_state_dict(checkpoint['message_hub'])


@pytest.mark.parametrize('layout', ['zip', 'legacy', 'safetensors'])
def test_tensors_are_read_to_the_device_that_is_asked_for(layout, path):
    if layout == 'safetensors':
        save_file(WEIGHTS, path)
    else:
        torch.save({'state_dict': WEIGHTS}, path, _use_new_zipfile_serialization=layout == 'zip')
    for device in ('meta', torch.device('meta')):
        assert read_checkpoint(path, device)['state_dict']['a'].is_meta
    # what torch.load takes besides
    for other in (None, {'cuda:0': 'meta'}, lambda storage, location: storage):
        assert torch.equal(read_checkpoint(path, other)['state_dict']['a'], WEIGHTS['a'])


def test_without_safetensors_its_files_are_refused(path, monkeypatch):
    save_file(WEIGHTS, path)
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    assert 'needs `pip install safetensors`' in refusal(path)


def test_safetensors_are_read_whatever_their_ending(path):
    save_file(WEIGHTS, path)
    assert torch.equal(read_checkpoint(path)['state_dict']['a'], WEIGHTS['a'])


def test_damaged_safetensors_are_refused(path):
    meta = {'rmt': {'tensors_sha256': sha256_of_tensors(WEIGHTS)}}
    save_file(WEIGHTS, path, metadata={'meta': json.dumps(meta)})
    assert read_checkpoint(path)['meta'] == meta
    with open(path, 'rb') as file:
        content = bytearray(file.read())
    write(path, content[:-1] + b'\x01')
    assert 'fail their checksum' in refusal(path)
    write(path, content[:-3])
    assert 'damaged safetensors file' in refusal(path)
    for meta in ('[1, 2]', '3', '{', '[' * 100_000):
        save_file(WEIGHTS, path, metadata={'meta': meta})
        assert 'damaged' in refusal(path)


# --- what the dict holds -------------------------------------------------------------------------


@pytest.mark.parametrize('wrap', [
    lambda weights: {'model': weights, 'epoch': 1},
    lambda weights: {'meta': {}, 'state_dict': weights},
    lambda weights: {'model': {'state_dict': weights, 'epoch': 1}},
    lambda weights: weights,
    lambda weights: {'state_dict': {f'module.{n}': t for n, t in weights.items()}},
    lambda weights: {f'module.module.{n}': t for n, t in weights.items()},
])  # fmt: skip
def test_weights_are_found_however_they_are_wrapped(wrap):
    weights = numbered(RMT(MINI))
    assert state_dict_in(wrap(weights), 'x').keys() == weights.keys()


def test_model_ema_is_taken_when_asked():
    file = imagenet_file(RMT(MINI))
    first = 'patch_embed.proj.0.weight'
    assert state_dict_in(file, 'x')[first].flatten()[0] == 1
    assert state_dict_in(file, 'x', 'model_ema')[first].flatten()[0] == 0.5


@pytest.mark.parametrize(('checkpoint', 'words'), [
    ({}, 'holds no weights'),
    ({'state_dict': {}}, 'holds no weights, only state_dict'),
    ({'model': {'a': 1}}, "'a' is a int"),
    ({'state_dict': {'a': torch.zeros(2, 2).to_sparse()}}, 'a is not a plain dense tensor'),
    ({'a': torch.zeros(1).expand(10**6)}, 'stretched over a smaller storage'),
])  # fmt: skip
def test_what_holds_no_plain_weights_is_refused(checkpoint, words):
    with pytest.raises(CheckpointError, match=f'file.pth: .*{words}'):
        state_dict_in(checkpoint, 'file.pth')


def test_a_missing_key_is_refused_and_the_present_ones_listed():
    with pytest.raises(CheckpointError, match="no weights under 'ema', only model, epoch"):
        state_dict_in({'model': numbered(RMT(MINI)), 'epoch': 1}, 'file.pth', 'ema')


def test_long_lists_are_cut():
    assert first_few(['a', 'b', 'c', 'd', 'e']) == 'a, b, c, and 2 more'
    assert first_few([]) == 'nothing'
