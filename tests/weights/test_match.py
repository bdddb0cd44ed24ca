"""Loading is complete or refused: backbones and whole models."""

import re

import pytest
import torch
from golden import recipe_state_dict
from released_files import (
    MINI,
    Detector,
    assert_holds,
    detector_file,
    headless_file,
    imagenet_file,
    imagenet_weights,
    numbered,
    uninitialised,
    with_tables,
)
from torch import nn

from backbone import RMT, VARIANTS
from backbone.weights.checkpoint import Checkpoint
from backbone.weights.families import FAMILY_NAMES
from backbone.weights.match import (
    CheckpointError,
    load_backbone,
    load_model,
    match_checkpoint,
)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'weights.pth')


# --- backbones -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arch', 'token_label'),
    [('tiny', False), ('tiny', True), ('small', False), ('base', True), ('large', False)],
)
def test_every_tensor_of_an_imagenet_file_arrives(arch, token_label, path, messages):
    with uninitialised():
        model = RMT(arch, init_cfg=dict(type='Pretrained', checkpoint=path))
    weights = imagenet_weights(model, token_label)
    torch.save({'model': weights}, path)
    before = {n: t.clone() for n, t in model.extra_norms.state_dict().items()}
    model.init_weights()
    assert_holds(model, weights, but='extra_norms.')
    assert all(torch.equal(t, before[n]) for n, t in model.extra_norms.state_dict().items())
    letter, tops = VARIANTS[arch].letter, 11 if token_label else 9
    assert f'RMT-{letter} ImageNet classifier' in messages[-1]
    assert f'{tops + 8} dropped (' in messages[-1]
    assert '8 as initialised (extra_norms.0.weight' in messages[-1]


def test_model_ema_is_loaded_when_asked(path):
    model = RMT(MINI)
    torch.save(imagenet_file(model), path)
    load_backbone(model, path, 'model_ema')
    assert_holds(model, numbered(model, start=0.5), but='extra_norms.')
    load_backbone(model, path)
    assert_holds(model, numbered(model), but='extra_norms.')


@pytest.mark.parametrize('wrap', [
    lambda weights: weights,
    lambda weights: {'state_dict': weights},
    lambda weights: {'model': {f'module.{n}': t for n, t in weights.items()}},
    lambda weights: {'state_dict': {f'backbone.{n}': t for n, t in weights.items()}},
    lambda weights: {f'module.backbone.{n}': t for n, t in weights.items()},
])  # fmt: skip
def test_every_wrapping_of_a_backbone_loads(wrap, path):
    model = RMT(MINI)
    weights = numbered(model)
    torch.save(wrap(weights), path)
    load_backbone(model, path)
    assert_holds(model, weights)


def test_a_backbone_is_taken_out_of_a_detector(path, messages):
    file = detector_file()
    torch.save(file, path)
    model = RMT(MINI)
    load_backbone(model, path)
    weights = {n.removeprefix('backbone.'): t for n, t in file['state_dict'].items()}
    assert_holds(model, weights)
    assert 'neck.weight' in messages[-1]


@pytest.mark.parametrize('indices', [(1, 2, 3), (3,), (0, 1)])
def test_fewer_outputs_take_their_part_of_a_whole_file(indices, path):
    weights = numbered(RMT(MINI))
    torch.save({'model': weights}, path)
    model = RMT(MINI, out_indices=indices)
    load_backbone(model, path)
    assert_holds(model, weights)


@pytest.mark.parametrize('counters', [True, False])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_released_files_in_another_precision_load_into_float32(dtype, counters, path):
    model = RMT('tiny')
    source = with_tables(numbered(model), model)
    weights = {
        n: t.to(dtype) if counters or t.is_floating_point() else t for n, t in source.items()
    }
    torch.save({'model': weights}, path)
    load_backbone(model, path)
    assert_holds(model, {n: t.float() for n, t in weights.items()}, but='num_batches_tracked')
    assert model.patch_embed.proj[0].weight.dtype == torch.float32


# --- what init_cfg may say -----------------------------------------------------------------------


def pretrained(path, **options):
    model = RMT(MINI, init_cfg=dict(type='Pretrained', checkpoint=path, **options))
    model.init_weights()
    return model


def test_init_cfg_takes_the_averaged_weights_by_key(path):
    torch.save(imagenet_file(RMT(MINI)), path)
    averaged = numbered(RMT(MINI), start=0.5)
    assert_holds(pretrained(path, key='model_ema'), averaged, but='extra_norms.')
    assert_holds(pretrained(path), numbered(RMT(MINI)), but='extra_norms.')


@pytest.mark.parametrize('prefix', ['teacher.backbone', 'teacher.backbone.'])
def test_init_cfg_takes_the_names_below_a_prefix(prefix, path):
    students, teachers = numbered(RMT(MINI)), numbered(RMT(MINI), start=1000)
    weights = {f'student.backbone.{n}': t for n, t in students.items()}
    weights |= {f'teacher.backbone.{n}': t for n, t in teachers.items()}
    torch.save({'state_dict': weights}, path)
    assert_holds(pretrained(path, prefix=prefix, map_location='cpu'), teachers)
    with pytest.raises(CheckpointError, match="no name begins with the prefix 'x"):
        pretrained(path, prefix='x')


def test_a_key_given_as_a_prefix_is_explained(path):
    torch.save(imagenet_file(RMT(MINI)), path)
    with pytest.raises(CheckpointError, match=r"did you mean key='model_ema'\?"):
        pretrained(path, prefix='model_ema')


@pytest.mark.parametrize(('options', 'words'), [
    (dict(checkpoint='x', prefx='backbone.'), 'with prefx: it takes type, checkpoint, key, prefix'),
    (dict(checkpoint='x', strict=False, revise_keys=[]), 'with revise_keys, strict: it takes'),
    (dict(), 'with no checkpoint: it takes'),
    (dict(checkpoint=None), 'with no checkpoint: it takes'),
])  # fmt: skip
def test_init_cfg_refuses_what_it_does_not_know(options, words):
    for init_cfg in (dict(type='Pretrained', **options), [dict(type='Pretrained', **options)]):
        with pytest.raises(ValueError, match=words):
            RMT(MINI, init_cfg=init_cfg)


# --- what does not fit ---------------------------------------------------------------------------


def damage(weights: dict) -> dict:
    """name -> (damaged weights, words of the refusal)."""
    q, other = 'layers.2.blocks.1.retention.q_proj.weight', 'layers.3.blocks.0.gamma_1'
    integers = {**weights, q: weights[q].long()}
    misshapen = {**weights, q: weights[q].T[:-1].contiguous()}
    tables = with_tables(weights, RMT(MINI))
    table = 'layers.1.Relpos.decay'
    return {
        'missing': (
            {n: t for n, t in weights.items() if n not in (q, other)},
            f'the file is incomplete (2 missing: {q}, {other})',
        ),
        'unexplained': ({**weights, 'layers.9.x': weights[q]}, '(1 unexplained: layers.9.x)'),
        'misshapen': (
            misshapen,
            f'(1 of another shape: {q} (31, 32) in the file, (32, 32) in the model)',
        ),
        'integers': (integers, f'(1 of another type: {q} torch.int64 in the file, torch.float32'),
        'other decay': ({**tables, table: tables[table] * 1.1}, f'{table} differs from what'),
        'other heads': ({**tables, table: tables[table][:2]}, f'{table} differs from what'),
        'of something else': (
            {'conv.weight': torch.ones(2)},
            f'these are not {FAMILY_NAMES} weights',
        ),
        'head only': ({'head.weight': torch.ones(2, 2)}, f'these are not {FAMILY_NAMES} weights'),
    }


@pytest.mark.parametrize('name', damage(numbered(RMT(MINI))))
def test_what_does_not_fit_is_refused_and_nothing_is_loaded(name, path):
    weights, words = damage(numbered(RMT(MINI)))[name]
    torch.save({'model': weights}, path)
    model = RMT(MINI)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_backbone(model, path)
    assert str(caught.value).startswith(f'{path}: ')
    assert words in str(caught.value)
    assert_holds(model, before)


@pytest.mark.parametrize('arch', ['tiny'])
def test_another_variants_weights_are_named(arch, path):
    weights = {n: t.half() for n, t in RMT('small').state_dict().items()}
    torch.save(weights, path)
    letter = VARIANTS[arch].letter
    with pytest.raises(
        CheckpointError, match=f'these are RMT-S weights; the config builds RMT-{letter}'
    ):
        load_backbone(RMT(arch), path)


# --- detectors and segmentors --------------------------------------------------------------------


def load(model, file, training=False):
    """Match a file that came from released.pth, and load it."""
    checkpoint = Checkpoint(file)
    checkpoint.source = 'released.pth'
    model.load_state_dict(match_checkpoint(model, checkpoint, training).state_dict)


@pytest.mark.parametrize('training', [True, False])
def test_a_released_detector_loads_whole(training, messages):
    model = Detector()
    file = detector_file()
    load(model, file, training)
    assert_holds(model, file['state_dict'])
    assert 'RMT of custom size' in messages[-1]
    assert 'Semantic FPN, 3 classes' in messages[-1]
    assert '8 dropped (backbone.layers.0.Relpos.angle' in messages[-1]


def test_load_model_is_for_demos(path):
    file = detector_file()
    torch.save(file, path)
    model = Detector(out_indices=(1, 2, 3))
    assert load_model(model, path)['meta']['epoch'] == 12
    assert_holds(model, file['state_dict'])


def test_counters_may_be_missing_but_nothing_else(messages):
    file = detector_file()
    counters = [n for n in file['state_dict'] if n.endswith('num_batches_tracked')]
    for name in counters:
        del file['state_dict'][name]
    load(Detector(), file)
    assert f'{len(counters)} as initialised' in messages[-1]
    del file['state_dict']['neck.weight']
    with pytest.raises(CheckpointError, match=r'incomplete \(1 missing: neck.weight\)'):
        load(Detector(), file)


def test_another_class_count_points_to_the_way_to_drop_the_head():
    with pytest.raises(CheckpointError) as caught:
        load(Detector(2), detector_file(3), training=True)
    message = str(caught.value)
    assert 'the file is for 3 classes, the config for 2' in message
    assert 'convert_checkpoint.py released.pth released_headless.pth --drop-head' in message
    assert 'decode_head.conv_seg.weight (3, 8, 1, 1) in the file, (2, 8, 1, 1)' in message


def test_no_advice_where_more_than_the_classes_differs():
    file = detector_file(3)
    file['state_dict']['neck.weight'] = torch.ones(9, 48, 1, 1)
    with pytest.raises(CheckpointError) as caught:
        load(Detector(2), file, training=True)
    assert '3 classes, the config for 2, and they differ in more than that' in str(caught.value)
    assert '--drop-head' not in str(caught.value)


def test_a_test_is_not_told_to_fine_tune():
    with pytest.raises(CheckpointError, match='for 2; give the config it was trained with'):
        load(Detector(2), detector_file(3))


def test_a_file_without_its_head_starts_training_and_nothing_else(messages):
    file = headless_file()
    model = Detector(2)
    load(model, file, training=True)
    assert_holds(model, file['state_dict'], but='conv_seg')
    assert '2 as initialised (decode_head.conv_seg.weight' in messages[-1]
    with pytest.raises(CheckpointError, match='without the heads that the config needs'):
        load(Detector(2), file)


def test_training_may_start_from_an_imagenet_file(messages):
    model = Detector()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    file = imagenet_file(model.backbone, token_label=True)
    load(model, dict(file), training=True)
    weights = {f'backbone.{n}': t for n, t in file['model'].items()}
    heads = {n: t for n, t in before.items() if n.startswith(('neck', 'decode', 'backbone.extra'))}
    assert_holds(model, {**weights, **heads})
    assert 'as initialised' in messages[-1]
    with pytest.raises(CheckpointError, match=r'ImageNet classifier.*without the heads'):
        load(model, dict(file))


def test_a_detector_of_another_kind_is_named():
    file = detector_file()
    moved = {
        n.replace('decode_head.', 'roi_head.mask_head.'): t for n, t in file['state_dict'].items()
    }
    with pytest.raises(
        CheckpointError, match=r'weights of .*Mask R-CNN; the config builds Semantic'
    ):
        load(Detector(), {'state_dict': moved})


def test_a_model_without_an_rmt_is_held_against_its_file_too():
    def model():
        return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    weights = numbered(model())
    whole = model()
    load(whole, {'state_dict': weights})
    assert_holds(whole, weights)
    for spoilt, words in (
        ({n: t for n, t in weights.items() if n != '0.bias'}, '1 missing: 0.bias'),
        ({**weights, 'more': torch.ones(1)}, '1 unexplained: more'),
        (numbered(RMT(MINI)), f'weights; the config builds no {FAMILY_NAMES}'),
    ):
        with pytest.raises(CheckpointError, match=re.escape(words)):
            load(model(), {'state_dict': spoilt}, training=True)


def test_a_checkpoint_without_a_source_still_says_something():
    with pytest.raises(CheckpointError, match='the checkpoint: holds no weights'):
        match_checkpoint(Detector(), {'meta': {}}, training=False)


def test_features_are_the_same_after_a_released_file(path):
    """By way of the golden recipe: random weights, not constants."""
    source = RMT(MINI).eval()
    source.load_state_dict(recipe_state_dict(source))
    torch.save({'model': with_tables(source.state_dict(), source)}, path)
    model = RMT(MINI).eval()
    load_backbone(model, path)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, theirs in zip(model(image), source(image), strict=True):
            assert torch.equal(ours, theirs)
