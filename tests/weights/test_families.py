"""RAVLT's and MAViT's files: the released names and shapes, what tells them, and what cannot."""

import argparse
import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import BaseLoop, load_checkpoint, load_state_dict
from released_files import (
    MINIS,
    Detector,
    assert_holds,
    convolutional_classifier,
    detector_file,
    downstream_file,
    imagenet_file,
    imagenet_weights,
    names_digest,
    numbered,
    released,
    with_tables,
)
from torch import nn

from backbone import RAVLT, RMT, MAViT
from backbone.engine.loading import StrictLoadHook
from backbone.weights.checkpoint import CheckpointError, told_family
from backbone.weights.families import (
    FAMILIES,
    MAVIT_FILES,
    RAVLT_FILES,
    RMT_FILES,
    UNKNOWN,
    family_in,
    family_in_config,
)
from backbone.weights.layout import recognise
from backbone.weights.match import load_backbone, load_model, match_checkpoint
from backbone.weights.read import read_checkpoint

ROTARY = {'RAVLT': RAVLT, 'MAViT': MAViT}

# SHA-256 of the sorted lines "name [shape]" of the released state dicts, which are those of both
# families; then of the tops of RAVLT's and MAViT's ImageNet files
OFFICIAL = {
    'tiny': (
        '3332f7c127c9ee04f345d87ebfe634200d66ba81b8176c0ef34b9bbaeedba2bd',
        'aa8c00aa7a3e204fec03fd05e7c41806fa2af667f24e29dd85e09c02d60745e9',
        '53d8c4ced2e37488bcd73f27e49bb332de2e23248424762eda237e3bfa5fdd64',
    ),
    'small': (
        '6f07c2d141686ea5649b5b92e497809c769b4cb54bba967d9ad50e5c4e6ccf84',
        'aa8c00aa7a3e204fec03fd05e7c41806fa2af667f24e29dd85e09c02d60745e9',
        '53d8c4ced2e37488bcd73f27e49bb332de2e23248424762eda237e3bfa5fdd64',
    ),
    'base': (
        '14d1048ec5d37728e5e03d9c2a4a6bcfa496ef0c2817e760fdbfdc71230608e2',
        'aa8c00aa7a3e204fec03fd05e7c41806fa2af667f24e29dd85e09c02d60745e9',
        '53d8c4ced2e37488bcd73f27e49bb332de2e23248424762eda237e3bfa5fdd64',
    ),
    'large': (
        'c4e9e0417e3c204211f7eafea1992b1965fe25f9dc41c34e13e90a6bee882040',
        '0671df9d016cbf66a86d8a88f2cb359030e629a78ae72b24f125d2022fab7875',
        'c76479f7b3345b5cdb60c0d6862e3569ef5ae66e14954373bdc12f19a203b2cc',
    ),
}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'weights.pth')


def mini(network: type) -> nn.Module:
    return network(MINIS[network])


# --- names, shapes, sizes ------------------------------------------------------------------------


@pytest.mark.parametrize('name', ROTARY)
@pytest.mark.parametrize('arch', OFFICIAL)
def test_names_and_shapes_are_the_released_ones(arch, name):
    with torch.device('meta'):
        model = MODELS.build(dict(type=name, arch=arch))
        channels, wide = model.variant.channels[-1], 2560 if arch == 'large' else 2048
        tops = [convolutional_classifier(channels, width) for width in (1024, wide)]
    weights = with_tables(released(model.state_dict(), model), model)
    assert (names_digest(weights), *map(names_digest, tops)) == OFFICIAL[arch]
    letter = model.variant.letter
    # of a released backbone alone nothing tells; what else is there does
    assert str(recognise(weights)) == f'RAVLT-{letter} or MAViT-{letter} backbone'
    assert str(recognise(weights, name)) == f'{name}-{letter} backbone'
    in_imagenet = {n: t for n, t in weights.items() if not n.startswith('extra_norms.')}
    for family, top in zip(ROTARY, tops, strict=True):
        found = recognise({**in_imagenet, **top})
        assert str(found) == f'{family}-{letter} ImageNet classifier, 1000 classes'
        assert found.heads == model.variant.heads
    ours = {f'backbone.{n}': t for n, t in model.state_dict().items()}
    assert recognise(ours, name).size == f'{name}-{letter}'


@pytest.mark.parametrize('network', ROTARY.values())
def test_renaming_goes_both_ways_and_changes_no_number(network):
    model = mini(network)
    ours = {n: torch.randn(t.shape) if t.ndim else t for n, t in model.state_dict().items()}
    family = family_in(model)
    theirs = family.to_released(ours)
    assert not set(theirs) - set(with_tables(theirs, model))
    assert {t.ndim for n, t in theirs.items() if n.endswith(('fc1.weight', 'proj.weight'))} == {4}
    for prefix in ('', 'backbone.', 'student.backbone.'):
        there = {prefix + n: t for n, t in theirs.items()}
        back = family.from_released(there)
        assert list(back) == [prefix + n for n in ours]
        assert all(torch.equal(back[prefix + n], t) for n, t in ours.items())
        again = family.to_released(back)
        assert list(again) == list(there)
        assert all(torch.equal(again[n], t) for n, t in there.items())
        assert family.from_released(back).keys() == back.keys()


def test_a_name_in_both_spellings_is_refused(path):
    model = mini(RAVLT)
    weights = released(numbered(model), model)
    twice = 'layers.2.blocks.1.norm1'
    torch.save({**weights, f'{twice}.weight': torch.ones(32)}, path)
    with pytest.raises(CheckpointError, match=rf'1 unexplained: {twice}\.norm\.weight'):
        load_backbone(model, path)


def test_heads_of_an_unknown_file_are_told_by_its_tables():
    model = mini(MAViT)
    weights = with_tables(released(model.state_dict(), model), model)
    found = recognise(weights)
    assert found.heads == (1, 2, 2, 4)
    assert found.size.startswith('RAVLT or MAViT of custom size (channels 16, 24, 32, 48; depths')
    for strange in (torch.ones(0), torch.ones(()), torch.ones(2, 2)):
        weights['layers.0.RoPE.angle'] = strange
        assert recognise(weights).heads == (2, 2, 4)


def test_tables_of_other_heads_are_refused(path):
    model = mini(RAVLT)
    other = RAVLT({**MINIS[RAVLT], 'heads': (1, 2, 4, 4)})  # the same shapes of weights
    torch.save(with_tables(released(numbered(model), model), other), path)
    with pytest.raises(CheckpointError, match=r'layers\.2\.RoPE\.angle differs from what RAVLT of'):
        load_backbone(model, path)


@pytest.mark.parametrize(('made', 'found'), [
    (lambda: mini(RMT), RMT_FILES),
    (lambda: mini(RAVLT), RAVLT_FILES),
    (lambda: mini(MAViT), MAVIT_FILES),
    (lambda: type('Mine', (MAViT,), {})(MINIS[MAViT]), MAVIT_FILES),
    (lambda: nn.ModuleList([nn.Module(), nn.ModuleList([mini(RAVLT), mini(RAVLT)])]), RAVLT_FILES),
    (lambda: nn.ModuleList([mini(RAVLT), mini(MAViT)]), UNKNOWN),
    (lambda: nn.Linear(2, 2), UNKNOWN),
])  # fmt: skip
def test_a_models_family_is_that_of_its_backbones(made, found):
    assert family_in(made()) is found


# --- what tells them -----------------------------------------------------------------------------


@pytest.mark.parametrize(('text', 'family'), [
    ("model = dict(\n    type='MaskRCNN',\n    backbone=dict(\n        type='GLTA',", 'RAVLT'),
    ("backbone=dict(type='MALA', depths=[2])", 'MAViT'),
    ('"backbone": {"type": "RankBoostLinearTransformerAttn"}', 'MAViT'),
    ("{'type': 'mmdet.MAViT'}", 'MAViT'),
    ("backbone=dict(type='RAVLT', arch='small')", 'RAVLT'),
    ("load_from = 'MALA.pth'\nwork_dir = 'GLTA'", ''),
    ("dict(type='GLTAX'), dict(prototype='GLTA')", ''),
    ("dict(type='GLTA'), dict(type='MALA')", ''),
    ("backbone=dict(type='RMT')", ''),
    ('type=' * 50_000, ''),
])  # fmt: skip
def test_the_text_of_a_config_tells_by_the_backbones_type(text, family):
    assert family_in_config(text) == family
    assert told_family({'meta': {'config_text': text}}) == family


@pytest.mark.parametrize('family', FAMILIES, ids=lambda family: family.name)
def test_our_own_word_counts_before_any_other(family):
    meta = {'rmt': {'family': family.name}, 'config_text': "dict(type='MALA')"}
    assert told_family({'meta': meta}) == family.name
    for word in ('', 'rmt', 5, None, ['RAVLT']):
        assert told_family({'meta': {**meta, 'rmt': {'family': word}}}) == 'MAViT'
    assert told_family({}) == ''


def test_what_is_told_counts_only_where_names_and_shapes_leave_a_choice():
    weights = imagenet_weights(mini(RAVLT), token_label=False)
    assert recognise(weights).family is RAVLT_FILES
    assert recognise(weights, 'MAViT').family is MAVIT_FILES  # a classifier of somebody's width
    assert recognise(weights, 'RMT').family is RAVLT_FILES
    assert recognise(mini(RMT).state_dict(), 'MAViT').family is RMT_FILES


# --- files into models ---------------------------------------------------------------------------


def told(network: type | None, file: dict) -> dict:
    """A file with a word of ours of a network's family; with none it says nothing."""
    meta = {'rmt': {'family': network.__name__}} if network else {}
    return {**file, 'meta': {**file.get('meta', {}), **meta}}


@pytest.mark.parametrize('network', ROTARY.values())
@pytest.mark.parametrize('key', [None, 'model_ema'])
def test_what_imagenet_training_leaves_goes_into_the_backbone(network, key, path, messages):
    model = mini(network)
    file = imagenet_file(model)
    file['args'] = argparse.Namespace(model='RAVLT_T', lr=1e-3, nested=argparse.Namespace(a=[1]))
    more = dict(lr_scheduler={'last_epoch': 299}, scaler={'scale': 65536.0}, max_accuracy=84.0)
    torch.save({**file, **more}, path)
    model.init_cfg = dict(type='Pretrained', checkpoint=path, **({'key': key} if key else {}))
    model.init_weights()
    assert_holds(model, numbered(model, 0.5 if key else 1.0), but='extra_norms.')
    (line,) = messages  # the head's width tells: nothing is assumed
    assert line.startswith(f'{path}: {network.__name__} of custom size')
    assert '13 dropped (proj.weight' in line
    assert '8 as initialised (extra_norms.' in line


def run(model: nn.Module, path: str, training: bool) -> None:
    """As mmengine's runner does it with our hook: for ``load_from``, and for a test."""
    loop = BaseLoop.__new__(type('Loop', (BaseLoop,), {'run': None}))
    runner = SimpleNamespace(
        model=model, cfg=SimpleNamespace(filename='my.py'), _resume=False,
        _train_loop=loop if training else {}, optim_wrapper=loop if training else {},
    )  # fmt: skip
    checkpoint = read_checkpoint(path)
    StrictLoadHook().after_load_checkpoint(runner, checkpoint)
    load_state_dict(model, checkpoint['state_dict'])


WAYS = {
    'pretrained': lambda model, path: load_backbone(model.backbone, path),
    'load_from': lambda model, path: run(model, path, training=True),
    'test': lambda model, path: run(model, path, training=False),
    'demo': load_model,
    'init_detector': load_checkpoint,
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('network', ROTARY.values())
def test_what_cannot_be_told_is_taken_for_the_models_and_the_log_says_so(
    network, way, path, messages
):
    model = Detector(network=network)
    torch.save(detector_file(network=network), path)
    WAYS[way](model, path)
    expected = numbered(Detector(network=network))
    assert_holds(model, {**model.state_dict(), **backbone_part(expected)})
    said = [line for line in messages if 'cannot be told' in line]
    assert said == [
        f'{path}: whether it is of RAVLT or MAViT cannot be told from the file; taken for '
        f'{network.__name__}, which the config builds'
    ]


def backbone_part(weights: dict) -> dict:
    return {n: t for n, t in weights.items() if n.startswith('backbone.')}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('says', ['ours', 'config'])
def test_what_can_be_told_is_taken_without_a_word_and_refused_by_the_other(
    says, way, path, messages
):
    file = detector_file(network=MAViT)
    file['meta']['config'] = "model = dict(backbone=dict(type='MALA'))"
    if says == 'ours':
        file = told(RAVLT, file)
    torch.save(file, path)
    theirs, other = ('RAVLT', 'MAViT') if says == 'ours' else ('MAViT', 'RAVLT')
    model = Detector(network=ROTARY[theirs])
    WAYS[way](model, path)
    assert_holds(model.backbone, numbered_backbone())
    assert not [line for line in messages if 'cannot be told' in line]
    with pytest.raises(CheckpointError) as caught:
        WAYS[way](Detector(network=ROTARY[other]), path)
    words = str(caught.value)
    assert words.startswith(f'{path}: these are {theirs} of custom size (channels 16, 24, 32, 48;')
    assert f'weights; the config builds {other} of custom size (' in words
    assert words.endswith('(the same names and shapes, another attention)')


def numbered_backbone() -> dict:
    weights = numbered(Detector(network=RAVLT))
    return {n.removeprefix('backbone.'): t for n, t in backbone_part(weights).items()}


BUILT = {
    'RMT into RAVLT': (RMT, RAVLT, None),
    'RAVLT into RMT': (RAVLT, RMT, None),
    'MAViT into RMT': (MAViT, RMT, MAViT),
    'RMT into MAViT': (RMT, MAViT, None),
}


@pytest.mark.parametrize('case', BUILT)
@pytest.mark.parametrize('way', WAYS)
def test_weights_of_another_family_are_refused_with_the_cause(way, case, path):
    theirs, ours, word = BUILT[case]
    torch.save(told(word, detector_file(network=theirs)), path)
    model = Detector(network=ours)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError) as caught:
        WAYS[way](model, path)
    named = theirs.__name__ if word or theirs is RMT else 'RAVLT or MAViT'
    assert f'these are {named} of custom size' in str(caught.value)
    assert f'weights; the config builds {ours.__name__} of custom size' in str(caught.value)
    assert '\n' not in str(caught.value)
    if way != 'init_detector':  # mmengine has loaded by then
        assert_holds(model, before)


@pytest.mark.parametrize(('theirs', 'ours', 'words'), [
    (('RMT', 'tiny'), ('RAVLT', 'tiny'), 'these are RMT-T weights; the config builds RAVLT-T'),
    (('RAVLT', 'tiny'), ('RMT', 'tiny'), 'these are RAVLT-T weights; the config builds RMT-T'),
    (('RAVLT', 'small'), ('RAVLT', 'tiny'), 'these are RAVLT-S weights; the config builds RAVLT-T'),
    (('RAVLT', 'tiny'), ('MAViT', 'tiny'), 'these are RAVLT-T weights; the config builds MAViT-T'),
    (('MAViT', 'tiny'), ('RAVLT', 'tiny'), 'these are MAViT-T weights; the config builds RAVLT-T'),
])  # fmt: skip
def test_an_imagenet_file_of_another_size_or_family_is_named(theirs, ours, words, monkeypatch):
    with torch.device('meta'):
        other, model = (MODELS.build(dict(type=name, arch=arch)) for name, arch in (theirs, ours))
        weights = imagenet_weights(other, token_label=False)
    monkeypatch.setattr('backbone.weights.match.read_checkpoint', lambda *_: {'model': weights})
    monkeypatch.setattr('backbone.weights.match.state_dict_in', lambda *_: dict(weights))
    with pytest.raises(CheckpointError, match=rf'a\.pth: {words}'):
        load_backbone(model, 'a.pth')


@pytest.mark.parametrize('network', ROTARY.values())
def test_an_imagenet_file_in_a_detectors_place_is_explained(network, path):
    model = Detector(network=network)
    torch.save(imagenet_file(model.backbone), path)
    with pytest.raises(CheckpointError, match='ImageNet classifier, 1000 classes, without the he'):
        load_model(model, path)
    with pytest.raises(CheckpointError, match='an ImageNet file is given as'):
        load_checkpoint(model, path)
    found = match_checkpoint(model, read_checkpoint(path), training=True)
    assert not [name for name in found.filled if 'blocks' in name]


@pytest.mark.parametrize('spoil', ['missing', 'misshapen', 'unexplained'])
def test_a_spoilt_file_of_neither_word_is_refused_for_what_is_wrong(spoil, path):
    file = detector_file(network=RAVLT)
    name = 'backbone.layers.2.blocks.1.attn.qkvo.weight'
    tensor = file['state_dict'].pop(name)
    words = {'missing': 'the file is incomplete (1 missing: '}.get(spoil, 'the file does not fit')
    if spoil == 'misshapen':
        file['state_dict'][name] = tensor[:-1]
    elif spoil == 'unexplained':
        file['state_dict'].update({name: tensor, f'{name}x': tensor})
    torch.save(file, path)
    for way in WAYS.values():
        with pytest.raises(CheckpointError) as caught:
            way(Detector(network=RAVLT), path)
        assert words in str(caught.value)


def test_a_network_of_somebody_with_released_names_loads_as_it_did(path):
    """The authors' own code, say, with our reader behind mmengine's."""

    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Module()])
            self.layers[0].attn = nn.ModuleDict(dict(qkvo=nn.Conv2d(4, 16, 1)))

    model = Theirs()
    torch.save(told(RAVLT, {'state_dict': numbered(model)}), path)
    result = match_checkpoint(model, read_checkpoint(path), training=False)
    assert result.state_dict.keys() == model.state_dict().keys()


def test_a_downstream_file_is_as_the_release_has_it():
    model = Detector(network=RAVLT)
    weights = downstream_file(model, numbered(model))['state_dict']
    assert weights['backbone.layers.0.blocks.0.attn.qkvo.weight'].shape == (64, 16, 1, 1)
    assert weights['backbone.layers.0.blocks.0.gamma_1'].shape == (1, 16, 1, 1)
    assert weights['backbone.layers.1.RoPE.angle'].shape == (6,)
    assert 'backbone.extra_norms.0.norm.weight' in weights
