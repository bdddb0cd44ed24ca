"""Files of classifiers: released ones give the released logits, ours go on into a detector."""

from dataclasses import replace

import pytest
import torch
from conftest import ROOT, load_tool
from golden import recipe_input, recipe_state_dict
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from oracle import Oracle
from released_files import (
    MINI,
    MINI_RAVLT,
    Detector,
    assert_holds,
    classifier,
    imagenet_file,
    names_digest,
    numbered,
    uninitialised,
    with_tables,
)
from test_layout import OFFICIAL

from backbone import RAVLT, RMT, VARIANTS, MAViT
from backbone.rmt import Variant
from backbone.weights.families import family_in
from backbone.weights.layout import as_classifier, as_released, recognise
from backbone.weights.match import CheckpointError, load_backbone, load_model, match_checkpoint

CONFIG = 'cls_configs/rmt_{}_300e_in1k.py'


def build(letter: str = 't', num_classes: int = 1000) -> torch.nn.Module:
    """The classifier of a config, with a norm that a CPU runs."""
    cfg = Config.fromfile(ROOT / CONFIG.format(letter))
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.norm_cfg = cfg.model.neck.norm_cfg = dict(type='BN')
    cfg.model.head.num_classes = num_classes
    return MODELS.build(cfg.model)


@pytest.fixture
def mini(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """The classifier of a small RMT, which is called RMT-T while a test runs."""
    variant = replace(VARIANTS['tiny'], **MINI)
    monkeypatch.setitem(VARIANTS, 'tiny', variant)
    return build()


def released_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights for ``model`` under the released names, each drawn by its name."""
    released = torch.nn.ParameterDict()  # names with dots are no module's
    state_dict = as_released(model.state_dict())
    released.state_dict = lambda: state_dict
    return with_tables(recipe_state_dict(released), model.backbone)


def logits(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """What the formulas give, in float64, by the released names."""
    w = {name: t.double() for name, t in weights.items() if t.is_floating_point()}
    oracle = Oracle(w, Variant(**MINI))
    x = oracle.stages(x.double())[-1]  # (B, H, W, C)
    x = oracle.batch_norm('norm', oracle.linear('proj', x).permute(0, 3, 1, 2))
    x = (x * torch.sigmoid(x)).mean((2, 3))
    return oracle.linear('head', x)


def test_a_released_file_gives_the_released_logits(mini, tmp_path):
    weights, x = released_weights(mini), recipe_input((1, 3, 64, 32))
    expected = logits(weights, x)
    assert expected.std() > 0.05  # nothing to compare otherwise
    path = str(tmp_path / 'released.pth')
    # without a head for token labels, or with one on the projection, or on the backbone
    for shapes in ((), [(1000, 1024), (1000,)], [(1000, 48), (1000,)]):
        names = ('aux_head.weight', 'aux_head.bias')
        extra = {name: torch.zeros(shape) for name, shape in zip(names, shapes, strict=False)}
        torch.save({'model': {**weights, **extra}}, path)
        mini.init_weights()
        load_model(mini, path)
        with torch.no_grad():
            found = mini.eval()(x)
        assert (found - expected).abs().max() / expected.std() < 5e-5


@pytest.mark.parametrize('arch', VARIANTS)
def test_names_and_shapes_are_the_released_ones_under_other_names(arch):
    with torch.device('meta'):
        model = build(VARIANTS[arch].letter.lower())
    released = as_released(model.state_dict())
    top = {n: t for n, t in released.items() if n.startswith(('proj.', 'norm.', 'head.'))}
    assert names_digest(top) == OFFICIAL[arch][1]
    with torch.device('meta'):
        backbone = RMT(arch)
    rest = {n: t for n, t in released.items() if n not in top}
    rest |= backbone.extra_norms.state_dict(prefix='extra_norms.')
    assert names_digest(with_tables(rest, backbone)) == OFFICIAL[arch][0]
    assert as_classifier(released)[0].keys() == model.state_dict().keys()


def test_what_training_leaves_goes_into_a_detector(mini, tmp_path):
    weights = numbered(mini)
    raw = {f'module.{name}': tensor + 0.5 for name, tensor in weights.items()}
    file = {'meta': {}, 'state_dict': weights, 'ema_state_dict': {'steps': torch.tensor(1), **raw}}
    torch.save(file, tmp_path / 'epoch_1.pth')
    path = str(tmp_path / 'epoch_1.pth')
    model = RMT(MINI)
    load_backbone(model, path)
    bare = {n.removeprefix('backbone.'): t for n, t in weights.items()}
    assert_holds(model, bare, but='extra_norms.')
    assert torch.equal(model.extra_norms['0'].weight, torch.ones(16))
    # the weights as trained, where an average was kept as well
    load_backbone(model, path, key='ema_state_dict', prefix='module.backbone')
    floats = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
    assert all(torch.equal(t, bare[n] + 0.5) for n, t in floats.items() if 'extra' not in n)


def test_a_classifier_is_recognised(mini):
    assert recognise(mini.state_dict()).kind == 'classifier'
    with uninitialised():
        assert str(recognise(build(num_classes=3).state_dict())) == 'RMT-T classifier, 3 classes'


def refusal(model: torch.nn.Module, weights: dict, training: bool = True) -> str:
    with pytest.raises(CheckpointError) as refused:
        match_checkpoint(model, {'state_dict': weights}, training, 'my.py')
    return str(refused.value)


def test_other_classes_and_other_models_are_refused_with_what_to_do(mini):
    weights = as_released(numbered(mini))
    with uninitialised():
        model = build(num_classes=3)
    said = refusal(model, weights)
    assert 'the file is for 1000 classes, the config for 3; to fine-tune it, drop' in said
    assert '--drop-head --config my.py' in said
    said = refusal(Detector(), numbered(mini))
    assert 'classifier, 1000 classes; its backbone goes in by pretrained=FILE' in said
    said = refusal(mini, {**weights, 'aux.weight': torch.zeros(1)})
    assert '1 unexplained: backbone.aux.weight' in said


def test_training_may_start_from_a_backbone_alone(mini):
    backbone = numbered(RMT(MINI))
    found = match_checkpoint(mini, {'state_dict': backbone}, training=True)
    assert {name.split('.')[0] for name in found.filled} == {'neck', 'head'}
    assert 'without the heads' in refusal(mini, backbone, training=False)


# --- the converter -------------------------------------------------------------------------------


def released_file(model: torch.nn.Module) -> dict:
    """A file of a token-labelled classifier and of its average."""
    channels = model.backbone.variant.channels[-1]
    weights = {**numbered(model.backbone), **classifier(channels, token_label=True)}
    average = {name: tensor + 0.25 for name, tensor in weights.items()}
    return {'model': with_tables(weights, model.backbone), 'model_ema': average}


def convert(*arguments: object) -> None:
    load_tool('convert_checkpoint').main([str(argument) for argument in arguments])


def test_a_released_classifier_becomes_ours_and_the_released_one_again(mini, tmp_path, capsys):
    file = {'model': released_file(mini)['model']}
    torch.save(file, tmp_path / 'file.pth')
    config = ROOT / CONFIG.format('t')
    convert(tmp_path / 'file.pth', tmp_path / 'ours.pth', '--config', config)
    said = capsys.readouterr().out
    assert 'renamed: as ours are' in said
    assert 'classification head (aux_head.weight, aux_head.bias)' in said
    ours = torch.load(tmp_path / 'ours.pth')['state_dict']
    assert ours.keys() == mini.state_dict().keys()
    convert(tmp_path / 'ours.pth', tmp_path / 'again.pth', '--to', 'released')
    again = torch.load(tmp_path / 'again.pth')['model']
    assert again.keys() == {name for name in file['model'] if not name.startswith('aux_head.')}
    assert all(torch.equal(again[name], file['model'][name]) for name in again)
    convert('--inspect', tmp_path / 'ours.pth')
    said = capsys.readouterr().out
    assert 'kind: classifier' in said
    assert 'complete: the backbone is' in said


@pytest.mark.parametrize('network', [RAVLT, MAViT])
def test_a_classifier_of_convolutions_becomes_ours_of_linear_layers_and_back(
    network, tmp_path, monkeypatch, capsys
):
    built = {}
    for kind in (RAVLT, MAViT):
        monkeypatch.setitem(kind.sizes, 'tiny', replace(kind.sizes['tiny'], **MINI_RAVLT))
        config = built[kind] = tmp_path / f'{kind.__name__}.py'
        norm, width = dict(type='BN'), 1024 if kind is RAVLT else 2048
        changes = dict(
            backbone=dict(type=kind.__name__, norm_cfg=norm),
            neck=dict(in_channels=48, out_channels=width, norm_cfg=norm),
            head=dict(in_channels=width),
        )
        config.write_text(f'_base_ = {str(ROOT / CONFIG.format("t"))!r}\nmodel = {changes}')
    config = built.pop(network)
    (other,) = built.values()
    models = [load_tool('convert_checkpoint').build(str(file), None) for file in (config, other)]
    path = str(tmp_path / 'released.pth')
    file = {'model': imagenet_file(models[0].backbone)['model']}
    torch.save(file, path)
    load_model(models[0], path)
    assert_holds(models[0], as_classifier(family_in(models[0]).from_released(file['model']))[0])
    with pytest.raises(CheckpointError, match=f'these are {network.__name__}-T weights; the conf'):
        load_model(models[1], path)
    convert(path, tmp_path / 'ours.pth', '--config', config)
    assert 'renamed: as ours are' in capsys.readouterr().out
    ours = torch.load(tmp_path / 'ours.pth')
    assert ours['state_dict'].keys() == models[0].state_dict().keys()
    convert(tmp_path / 'ours.pth', tmp_path / 'again.pth', '--to', 'released', '--config', config)
    again = torch.load(tmp_path / 'again.pth')
    assert again['model'].keys() == file['model'].keys()
    assert all(torch.equal(again['model'][name], file['model'][name]) for name in file['model'])
    assert {ours['meta']['rmt']['family'], again['meta']['rmt']['family']} == {network.__name__}
    with pytest.raises(CheckpointError, match=f'these are {network.__name__}-T weights; the conf'):
        convert(tmp_path / 'ours.pth', tmp_path / 'x.pth', '--config', other)


def test_other_classes_start_from_a_file_without_the_last_layer(mini, tmp_path):
    torch.save(released_file(mini), tmp_path / 'file.pth')
    convert(
        tmp_path / 'file.pth',
        tmp_path / 'x.pth',
        '--config',
        ROOT / CONFIG.format('t'),
        '--drop-head',
    )
    file = torch.load(tmp_path / 'x.pth')
    assert file['meta']['rmt']['dropped_head'] == ['head.fc.weight', 'head.fc.bias']
    with uninitialised():
        model = build(num_classes=3)
    found = match_checkpoint(model, file, training=True)
    assert sorted(found.filled) == ['head.fc.bias', 'head.fc.weight']


def test_averaged_weights_are_taken_on_request_from_either_kind_of_file(mini, tmp_path):
    name = 'backbone.patch_embed.proj.0.weight'
    file, weights = released_file(mini), numbered(mini)
    torch.save(file, tmp_path / 'released.pth')
    # mmengine's average is what it saves as the weights
    torch.save({'state_dict': weights, 'ema_state_dict': {}, 'meta': {}}, tmp_path / 'ours.pth')
    expected = {
        'released': file['model_ema'][name.removeprefix('backbone.')],
        'ours': weights[name],
    }
    for kind, tensor in expected.items():
        made = tmp_path / f'{kind}_average.pth'
        convert(tmp_path / f'{kind}.pth', made, '--config', ROOT / CONFIG.format('t'), '--ema')
        assert torch.equal(torch.load(made)['state_dict'][name], tensor), kind
