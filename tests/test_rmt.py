"""RMT: equal to the released model and the formula. What it shares is in ``test_network.py``."""

import copy
import functools

import golden
import numpy as np
import pytest
import released_files
import torch
from families import image, relative_error, unless_quick
from mmengine.registry import MODELS
from oracle import Oracle

from backbone import RMT, VARIANTS, attention
from backbone.attention import reference as formula

MINI = dict(released_files.MINI, drop_path=0.2)
MINI_WHOLE = dict(MINI, axial=(True, True, False, False))
RELEASED = [arch for arch, variant in VARIANTS.items() if variant.released_name]
PARAMETERS = {'tiny': 12_783_776, 'small': 25_416_800, 'base': 52_604_680, 'large': 93_784_280}


def build(arch=None, **kwargs) -> RMT:
    """A model with the golden recipe's weights."""
    model = MODELS.build(dict(type='RMT', arch=arch or MINI, **kwargs))
    model.load_state_dict(golden.recipe_state_dict(model))
    return model


# --- exactness -----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)  # of networks in a row
def golden_weights(network: str) -> dict[str, torch.Tensor]:
    with torch.device('meta'):
        model = RMT(network.removesuffix('_faint'))
    return golden.recipe_state_dict(model, faint=network.endswith('_faint'))


def golden_model(network: str, attention: str) -> RMT:
    with torch.device('meta'):
        model = RMT(network.removesuffix('_faint'), attention=attention)
    model.load_state_dict(golden_weights(network), assign=True)
    return model.eval()


# PyTorch's FlexAttention takes longer on a CPU than all others together
@pytest.mark.parametrize(
    'name', unless_quick(attention.IMPLEMENTATIONS, lambda n: n not in ('flex', 'triton'))
)
@pytest.mark.parametrize('network', golden.NETWORKS)
def test_features_equal_the_released_implementation(network, name, device):
    model = golden_model(network, name).to(device)
    for width in {stage.attention.head_dim for stage in model.layers}:
        if reason := attention.IMPLEMENTATIONS[name].supports(device, torch.float32, width):
            pytest.skip(f'{name} on {device}: {reason}')
    with torch.no_grad():
        features = model(golden.recipe_input(golden.INPUT_SHAPE).to(device))
    assert max(golden.golden_errors(features, network)) < golden.LIMIT


LEFT_OUT = {
    'nothing': (),
    'retention': ('retention.out_proj',),
    'local enhancement': ('retention.lepe.conv',),
    'feed-forward': ('ffn.fc2',),
    'its convolution': ('ffn.dwconv.conv',),
    'position': ('pos.conv',),
    'rotation': (),
    'decay': (),
    'factor of the keys': (),
}


def test_size_is_tiny_unless_told():
    assert RMT(out_indices=(0,)).variant is VARIANTS['tiny']


@pytest.mark.parametrize('arch', unless_quick(RELEASED, lambda arch: arch == 'tiny'))
def test_golden_features_notice_any_part_left_out_of_a_last_block(arch):
    model, seen = golden_model(arch, 'naive'), []
    for stage in model.layers:
        stage.blocks[-1].register_forward_pre_hook(lambda block, args: seen.append(args))
    with torch.no_grad(), np.load(golden.GOLDEN) as data:
        model(golden.recipe_input(golden.INPUT_SHAPE))
        for i, (x, attend) in enumerate(seen):
            cos, sin, *decay = attend.keywords['tables']
            for part, names in LEFT_OUT.items():
                block = copy.deepcopy(model.layers[i].blocks[-1])
                block._forward_pre_hooks.clear()
                for name in names:
                    layer = block.get_submodule(name)
                    layer.weight.zero_(), layer.bias.zero_()
                tables = {
                    'rotation': (torch.ones_like(cos), torch.zeros_like(sin), *decay),
                    'decay': (cos, sin, *(torch.zeros_like(t) for t in decay)),
                }.get(part, (cos, sin, *decay))
                factor = x.shape[-1] // model.variant.heads[i] if part.startswith('factor') else 1

                def other(q, k, v, tables=tables, factor=factor, axial=attend.keywords['axial']):
                    return formula.attend(q, k * factor**0.5, v, tables, axial)

                feature = model.extra_norms[str(i)](block(x, other)).permute(0, 3, 1, 2)
                error = golden.golden_error(feature, data, arch, i)
                assert (error > 100 * golden.LIMIT) == (part != 'nothing'), (part, i)


@pytest.mark.parametrize('arch', RELEASED)
def test_parameter_counts_are_the_published_ones(arch):
    with torch.device('meta'):
        model = RMT(arch)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]


@pytest.mark.parametrize('arch', [MINI, MINI_WHOLE], ids=['axial', 'whole'])
@pytest.mark.parametrize(('height', 'width'), [(64, 64), (75, 118)])
def test_features_and_gradients_equal_the_float64_formula_with_live_bn(arch, height, width, device):
    model = build(arch, drop_path_rate=0.0).train().to(device)
    x = image(height, width, batch=2).to(device).requires_grad_()
    weights = {n: t.detach().cpu().double() for n, t in model.state_dict().items()}
    names = [n for n, _ in model.named_parameters()]
    for name in names:
        weights[name].requires_grad_()
    x64 = x.detach().cpu().double().requires_grad_()
    expected = Oracle(weights, model.variant, live_bn=True)(x64)
    features = model(x)
    loss = sum((f * golden.recipe_input(f.shape).to(device)).sum() for f in features)
    loss64 = sum((f * golden.recipe_input(f.shape).double()).sum() for f in expected)
    loss.backward()
    loss64.backward()
    for feature, reference in zip(features, expected, strict=True):
        assert (feature.cpu() - reference).abs().max() < golden.TOLERANCE
    assert relative_error(x.grad.cpu(), x64.grad) < golden.TOLERANCE
    parameters = dict(model.named_parameters())
    for name in names:
        # a bias in front of a live norm has no influence, its gradient is rounding around zero:
        # measure it against the gradient of the weight beside it
        beside = weights[name.replace('.bias', '.weight')].grad
        scale = max(weights[name].grad.norm(), beside.norm())
        error = (parameters[name].grad.cpu().double() - weights[name].grad).norm() / scale
        assert error < golden.TOLERANCE, name


@pytest.mark.parametrize('arch', VARIANTS)
def test_every_implementation_equals_the_formula_in_every_variant(arch, device):
    plain = RMT(arch, attention='naive', drop_path_rate=0.0).to(device)
    x = image(35, 67, batch=2).to(device)

    def run(name, training):
        model = plain
        if name != 'naive':
            with torch.device('meta'):  # no time for random weights
                model = RMT(arch, attention=name, drop_path_rate=0.0)
            model.load_state_dict(plain.state_dict(), assign=True)
            model.requires_grad_()
        leaf = x.clone().requires_grad_(training)
        with torch.set_grad_enabled(training):
            features = model.eval()(leaf)
        if training:
            weights = [torch.linspace(-1, 1, f.numel()).view_as(f) for f in features]
            loss = sum((f * w).mean() for f, w in zip(features, weights, strict=True))
            tensors = [leaf, *model.parameters()]
            return features, torch.autograd.grad(loss, tensors)
        return features, ()

    expected, gradients = run('naive', training=True)
    for name in attention.IMPLEMENTATIONS:  # 'auto' is one of them
        heads = zip(plain.variant.channels, plain.variant.heads, strict=True)
        implementation = attention.IMPLEMENTATIONS[name]
        if any(implementation.supports(device, x.dtype, C // n) for C, n in heads):
            continue
        if name == 'triton' and device.type == 'cpu':
            continue  # minutes in the interpreter: tests/attention/test_triton.py has less of it
        features, _ = run(name, training=False)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
        if name != 'flex' or device.type != 'cpu':  # has no gradients on a CPU
            _, found = run(name, training=True)
            for ours, theirs in zip(found, gradients, strict=True):
                assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7


# --- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('attention', ['auto', 'naive'])
def test_stream_is_half_under_autocast_as_in_released_training(attention, dtype):
    # convolutions and linear layers give halves, and the sum of halves is one; a layer scale is a
    # float32 weight, what is multiplied with it and added to is float32 until the next stage
    model, seen = build(attention=attention), []
    for stage in model.layers:
        for block in stage.blocks:
            block.register_forward_pre_hook(lambda block, args: seen.append(args[0].dtype))
    for training in (False, True):
        with torch.autocast('cpu', dtype):
            model.train(training)(image())
    expected = [
        torch.float32 if block and MINI['layer_scale'][i] else dtype
        for i, depth in enumerate(MINI['depths'])
        for block in range(depth)
    ]
    assert seen == 2 * expected
    assert set(expected) == {torch.float32, dtype}


def test_positions_and_decay_are_those_of_float32_in_a_bf16_model(no_tables):
    def tables(model):
        attention._cache.clear()
        grid = torch.zeros(1, 20, 32, 1)
        return [t for s in model.layers for t in s.attention.prepare(grid).keywords['tables']]

    expected = tables(build(attention='kernel'))
    with torch.autocast('cpu', torch.bfloat16):
        found = tables(build(attention='kernel').bfloat16())
    assert {t.dtype for t in expected} == {torch.float32}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# --- tables --------------------------------------------------------------------------------------


def test_position_tables_are_made_once_a_stage_and_kept(monkeypatch):
    model, calls = build(attention='kernel').eval(), []
    make = attention.IMPLEMENTATIONS['kernel'].tables
    monkeypatch.setattr(attention, '_cache', type(attention._cache)())
    monkeypatch.setattr(
        attention.IMPLEMENTATIONS['kernel'], 'tables', lambda *a: calls.append(a) or make(*a)
    )
    model(image(batch=2))
    assert len(calls) == 4
    model(image(batch=1))
    assert len(calls) == 4
