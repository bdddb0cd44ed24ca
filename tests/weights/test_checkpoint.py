"""What stands beside the weights is never run, and of the types that its readers expect."""

import copy

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub

from backbone.weights.checkpoint import (
    CheckpointError,
    class_names,
    own_meta,
    printable,
    told_family,
)
from backbone.weights.read import read_checkpoint

WEIGHTS = {'a': torch.arange(6.0).reshape(2, 3), 'b': torch.ones(4)}
TEXT = "model = dict(type='os.system', command='true')"
ANY = [None, 5, -1.5, True, 'text', b'bytes', [1], (2,), {'x': 1}, {3: {}}, torch.ones(2), [['a']]]
"""A value of every kind that a pickle may put at any place."""
OWN = ('family', 'source', 'date', 'tensors_sha256', 'dropped_head', 'epoch', 'iter')


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'weights.pth')


def saved(path, **content):
    torch.save({'state_dict': WEIGHTS, **content}, path)
    return read_checkpoint(path)


# --- texts of configs ----------------------------------------------------------------------------


@pytest.mark.parametrize('key', ['cfg', 'config'])
def test_a_text_in_meta_is_set_aside_for_people_to_read(key, path):
    assert saved(path, meta={key: TEXT, 'epoch': 1})['meta'] == {'epoch': 1, 'config_text': TEXT}


@pytest.mark.parametrize('text', [TEXT, 'a = 1', 5, None, {'model': {'type': 'os.system'}}])
def test_nothing_stays_where_an_inferencer_looks_for_a_config(text, path):
    hub = {'log_scalars': {}, 'resumed_keys': {'cfg': True}, 'runtime_info': {'cfg': text}}
    checkpoint = saved(path, meta={'cfg': text}, message_hub=hub)
    assert 'cfg' not in checkpoint['meta']
    assert 'cfg' not in checkpoint['message_hub']['runtime_info']
    MessageHub.get_instance('test_checkpoint').load_state_dict(checkpoint['message_hub'])


def test_what_looks_for_a_config_is_told_to_be_given_one(path):
    info = saved(path, message_hub={'runtime_info': {'cfg': TEXT, 'iter': 3}})
    info = info['message_hub']['runtime_info']
    assert info == {'iter': 3}
    with pytest.raises(
        CheckpointError, match=r'weights\.pth: a config is needed .*DetInferencer\('
    ):
        info['cfg']
    with pytest.raises(KeyError):
        info['epoch']
    assert copy.deepcopy(info) == {'iter': 3}


# --- what a resumed run removes ------------------------------------------------------------------


def test_a_resumed_run_removes_no_files_but_checkpoints(path):
    paths = {
        'best_ckpt': '/home/me/precious',
        'best_ckpt_bbox': 'work_dirs/best_bbox_epoch_3.pth',
        'best_ckpt_segm': 5,
        'keep_ckpt_ids': ['/../../precious'],
    }
    hub = saved(path, message_hub={'runtime_info': dict(paths)})['message_hub']
    assert hub['runtime_info'] == {'best_ckpt_bbox': paths['best_ckpt_bbox']}
    hub = saved(path, message_hub={'runtime_info': {'keep_ckpt_ids': [1, 2]}})['message_hub']
    assert hub['runtime_info'] == {'keep_ckpt_ids': [1, 2]}


# --- types ---------------------------------------------------------------------------------------


def places():
    """A checkpoint with each value at each place."""
    for value in ANY:
        yield {'meta': value}
        yield {'message_hub': value}
        yield {'message_hub': {'runtime_info': value, 'log_scalars': value}}
        yield {'epoch': value, 'iter': value}
        for key in ('dataset_meta', 'CLASSES', 'PALETTE', 'rmt', 'cfg', 'config', 'epoch', 'iter'):
            yield {'meta': {key: value}}
        for key in ('classes', 'palette', 3):
            yield {'meta': {'dataset_meta': {key: value}}}
        for key in (*OWN, 'kind'):
            yield {'meta': {'rmt': {key: value}}}


def test_any_type_at_any_place_is_refused_in_one_line_or_as_its_readers_expect(path):
    refused = 0
    for content in places():
        try:
            checkpoint = saved(path, **content)
        except CheckpointError:
            refused += 1
            continue
        meta = checkpoint['meta']
        dataset = meta.get('dataset_meta', {})
        assert all(key == key.lower() for key in dataset)
        class_names(meta)
        own = own_meta(checkpoint)
        assert all(isinstance(own.get(name, ''), str) for name in ('family', 'source', 'date'))
        assert told_family(checkpoint) == ''
        ', '.join(own.get('dropped_head', ()))
    assert refused > 50


@pytest.mark.parametrize('version', ANY)
def test_versions_of_layers_are_numbers_or_none_at_all(version, path):
    state_dict = torch.nn.BatchNorm2d(2).state_dict()
    for metadata in (
        {'': {'version': version}},
        {'': version},
        {version: {}} if _key(version) else {},
    ):
        state_dict._metadata = type(state_dict)(metadata)
        torch.save({'state_dict': state_dict}, path)
        torch.nn.BatchNorm2d(2).load_state_dict(read_checkpoint(path)['state_dict'])


def _key(value):
    try:
        return hash(value) is not None and not isinstance(value, torch.Tensor)
    except TypeError:
        return False


@pytest.mark.parametrize('meta', [
    {'dataset_meta': {'classes': ('cat', 'dog'), 'palette': [(220, 20, 60), [0, 0, 142]]}},
    {'dataset_meta': {'classes': ['cat'], 'palette': None}},
    {'dataset_meta': {'CLASSES': ('cat',), 'PALETTE': 'random'}},
    {'CLASSES': ('cat',), 'PALETTE': None},
    None,
])  # fmt: skip
def test_what_honest_files_say_stays(meta, path):
    assert saved(path, meta=meta)['meta'] == (meta or {})


def test_a_data_set_that_says_nothing_of_itself_is_none(path):
    assert saved(path, meta={'dataset_meta': None, 'epoch': 3})['meta'] == {'epoch': 3}


def test_a_palette_may_be_an_array(path):
    palette = np.array([[0, 128, 255]])
    assert np.array_equal(saved(path, meta={'PALETTE': palette})['meta']['PALETTE'], palette)


@pytest.mark.parametrize(
    'palette', [[(0, 0)], [(0, 0, 256)], [(-1, 0, 0)], [(0.5, 0, 0)], [5], 7, {}], ids=str
)
def test_a_palette_of_no_colours_is_refused(palette, path):
    with pytest.raises(CheckpointError, match="meta's palette is no list of colours"):
        saved(path, meta={'dataset_meta': {'palette': palette}})


@pytest.mark.parametrize('meta', [
    {'dataset_meta': {'classes': ('cat', 'dog')}, 'CLASSES': ('other',)},
    {'CLASSES': ['cat', 'dog']},
])  # fmt: skip
def test_class_names_are_found_where_every_release_put_them(meta):
    assert class_names(meta) == ['cat', 'dog']
    assert class_names({}) == []


def test_messages_are_one_line_whatever_a_file_says():
    text = 'a\nb\x1b[2Jc\u2028d\te'
    assert printable(text) == 'a b [2Jc d e'
    assert str(CheckpointError(text)) == printable(text)
