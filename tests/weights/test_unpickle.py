"""The unpickler of our own reads what torch reads, bit for bit, and depends on nobody around it."""

import argparse
import collections
import io
import pickle
import struct
import threading
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from backbone.weights.checkpoint import CheckpointError
from backbone.weights.names import NAMES
from backbone.weights.read import read_checkpoint
from backbone.weights.unpickle import unpickle

BASE = torch.arange(24.0)
TENSORS = {
    'whole': BASE,
    'view': BASE[3:9].view(2, 3).T,
    'empty': torch.zeros(0, 3),
    'scalar': torch.tensor(5),
    'parameter': torch.nn.Parameter(torch.ones(2)),
    **{
        str(dtype): torch.tensor([0, 1, 1]).to(dtype)
        for dtype in (
            torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
            torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
        )
    },
}  # fmt: skip
NEW_DTYPES = [torch.uint16, torch.float8_e4m3fn]  # the old format has none of them
DATA = {
    'dtype': torch.float16,
    'size': torch.Size([1, 2]),
    'device': torch.device('cpu'),
    'namespace': argparse.Namespace(lr=1e-3, sizes=[1, (2,)]),
    'milestones': collections.Counter({3: 1, 8: 1}),
    'ordered': collections.OrderedDict(a=1, b=None),
    'bytes': [b'', b'abc\xff', bytearray(b'q'), bytearray()],
    'numbers': [True, -5, 70_000, 10**30, 1.5, 1 + 2j, {1, 2}],
    'text': 'ü 中',
    'scalar of numpy': np.float32(2.5),
}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'weights.pth')


@pytest.mark.parametrize('legacy', [False, True])
def test_tensors_are_those_that_torch_reads(legacy, path):
    tensors = dict(TENSORS)
    if not legacy:
        tensors |= {str(d): torch.tensor([0, 1]).to(d) for d in NEW_DTYPES}
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    expected, found = torch.load(path, weights_only=True), read_checkpoint(path)
    for name in tensors:
        ours, theirs = found[name], expected[name]
        assert ours.dtype == theirs.dtype, name
        assert ours.shape == theirs.shape, name
        assert ours.stride() == theirs.stride(), name
        if ours.itemsize == 1 or not ours.is_contiguous():
            assert torch.equal(ours.float(), theirs.float()), name
        else:
            assert torch.equal(ours.flatten().view(torch.uint8), theirs.flatten().view(torch.uint8))
    found['whole'][3] = 99
    assert found['view'][0, 0] == 99  # views go on sharing their numbers


@pytest.mark.parametrize('legacy', [False, True])
def test_plain_data_are_what_was_saved(legacy, path):
    torch.save({**DATA, 'w': BASE}, path, _use_new_zipfile_serialization=not legacy)
    found = read_checkpoint(path)
    for name, value in DATA.items():
        assert found[name] == value, name
        assert type(found[name]) is type(value), name


def test_versions_of_layers_are_kept(path):
    layer = torch.nn.BatchNorm2d(2)
    torch.save({'state_dict': layer.state_dict()}, path)
    assert read_checkpoint(path)['state_dict']._metadata[''] == {'version': 2}


def test_a_tensor_with_attributes_is_its_numbers(path):
    weight = torch.nn.Parameter(torch.ones(2))
    weight.note = 'mine'
    torch.save({'w': weight}, path)
    assert torch.equal(read_checkpoint(path)['w'], torch.ones(2))


def test_what_is_saved_again_is_read_by_anybody(path):
    torch.save({'state_dict': {'w': BASE}, 'meta': {'cfg': 'a = 1'}}, path)
    torch.save(read_checkpoint(path), path)
    assert torch.equal(torch.load(path, weights_only=True)['state_dict']['w'], BASE)
    assert torch.equal(read_checkpoint(path)['state_dict']['w'], BASE)


# --- alone in the process ------------------------------------------------------------------------


@pytest.fixture
def training_file(path):
    """A file with all that torch alone does not let in."""
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save({**DATA, 'w': BASE, 'log': buffer, 'array': np.eye(2)}, path)
    return path


def test_threads_read_at_the_same_time(training_file):
    failures = []

    def read():
        for _ in range(40):
            try:
                assert torch.equal(read_checkpoint(training_file)['w'], BASE)
            except Exception as error:  # noqa: BLE001
                failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_safe_names_of_others_change_nothing_and_ours_are_nobody_elses(training_file, tmp_path):
    class Theirs:
        pass

    before = torch.serialization.get_safe_globals()
    read_checkpoint(training_file)
    assert torch.serialization.get_safe_globals() == before
    theirs = [HistoryBuffer, np.ndarray, np.dtype, argparse.Namespace, getattr, eval]
    theirs.append((Theirs, 'numpy.dtype'))
    with torch.serialization.safe_globals(theirs):
        assert np.array_equal(read_checkpoint(training_file)['array'], np.eye(2))

        class Evaluates:
            def __reduce__(self):
                return eval, ('1',)

        torch.save({'w': BASE, 'x': Evaluates()}, tmp_path / 'evil.pth')
        with pytest.raises(CheckpointError, match='asks for eval'):
            read_checkpoint(tmp_path / 'evil.pth')


@pytest.mark.parametrize('force', ['WEIGHTS_ONLY_LOAD', 'NO_WEIGHTS_ONLY_LOAD'])
def test_torchs_switches_change_nothing(force, training_file, monkeypatch):
    monkeypatch.setenv(f'TORCH_FORCE_{force}', '1')
    assert torch.equal(read_checkpoint(training_file)['w'], BASE)


# --- crafted pickles -----------------------------------------------------------------------------


def rewritten(data: dict, change) -> bytes:
    """A file of torch's whose pickle is changed."""
    saved, out = io.BytesIO(), io.BytesIO()
    torch.save(data, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(out, 'w') as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith('data.pkl') else content)
    return out.getvalue()


@pytest.mark.parametrize(('old', 'new'), [
    (b'K\x00K\x06\x85', b'K\x01K\x06\x85'),  # from the second number on
    (b'K\x00K\x06\x85', b'K\x00K\x07\x85'),  # of more numbers
    (b'K\x06\x85q\x08K\x01\x85', b'K\x06\x85q\x08K\x02\x85'),  # every second of them
    (b'K\x00K\x06\x85', b'J\xff\xff\xff\xffK\x06\x85'),  # from before the first on
    (b'cpuq\x06K\x06tq', b'cpuq\x06K\x0ctq'),  # in a larger storage
    (b'FloatStorage', b'DoubleStorage'),
])  # fmt: skip
def test_a_tensor_outside_its_storage_is_refused(old, new, path):
    def change(pickled):
        assert pickled.count(old) == 1, pickled
        return pickled.replace(old, new)

    with open(path, 'wb') as file:
        file.write(rewritten({'a': torch.arange(6.0)}, change))
    with pytest.raises(CheckpointError, match='truncated or damaged'):
        read_checkpoint(path)


class Calls:
    """Pickles as a call of ``function(*args)``, with a state."""

    def __init__(self, function, *args, state=None):
        self.call = function, args, state

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('payload', [
    Calls(bytearray, 1 << 40),
    Calls(bytes, 1 << 40),
    Calls(torch.Tensor, 1 << 40),
    Calls(torch._utils._rebuild_tensor_v2, torch.ones(1), 0, (1,), (1,), False, {}),
    Calls(np.dtype, 'O'),
    Calls(np.ndarray, (1 << 40,)),
    Calls(argparse.Namespace, state={'x': 1}),
    Calls(collections.OrderedDict, state={'items': 1}),
    Calls(set, [1], state={'x': 1}),
    Calls(torch.Size, ([1],), state={'x': 1}),
])  # fmt: skip
def test_what_honest_files_do_not_do_is_refused_or_without_effect(payload, path):
    torch.save({'w': BASE, 'x': payload}, path)
    try:
        found = read_checkpoint(path)['x']
    except CheckpointError:
        return
    assert isinstance(found, (collections.OrderedDict, argparse.Namespace))
    assert callable(getattr(found, 'items', dict))


@pytest.mark.parametrize('protocol', [0, 1, 3, 4])
def test_instructions_that_torch_does_not_write_are_refused(protocol):
    with pytest.raises(pickle.UnpicklingError, match='instruction'):
        unpickle(io.BytesIO(pickle.dumps([b'abc', 1 << 70, {2}], protocol)), NAMES)


@pytest.mark.parametrize('name', ['os system', 'torch load', 'builtins dict', 'numpy load'])
def test_names_outside_the_table_are_refused_before_anything_is_called(name):
    content = b'\x80\x02c' + name.replace(' ', '\n').encode() + b'\n.'
    with pytest.raises(pickle.UnpicklingError, match=f'GLOBAL {name.replace(" ", ".")}'):
        unpickle(io.BytesIO(content), NAMES)


def test_a_string_longer_than_the_file_is_damage():
    content = b'\x80\x02X' + struct.pack('<I', 2**32 - 1) + b'abc.'
    with pytest.raises(ValueError, match='expected 4294967295 bytes'):
        unpickle(io.BytesIO(content), NAMES)
