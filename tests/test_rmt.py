"""The backbone: equal to the released model and the formula, and every argument has its effect."""

import contextlib
import copy
import functools
import pickle

import golden
import numpy as np
import pytest
import released_files
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from oracle import Oracle
from torch import nn

from backbone import RMT, VARIANTS, attention
from backbone.attention import reference as formula
from backbone.weights.match import CheckpointError

MINI = dict(released_files.MINI, drop_path=0.2)
MINI_WHOLE = dict(MINI, axial=(True, True, False, False))
RELEASED = [arch for arch, variant in VARIANTS.items() if variant.released_name]
PARAMETERS = {'tiny': 12_783_776, 'small': 25_416_800, 'base': 52_604_680, 'large': 93_784_280}


def build(arch=None, **kwargs) -> RMT:
    """A model with the golden recipe's weights."""
    model = MODELS.build(dict(type='RMT', arch=arch or MINI, **kwargs))
    model.load_state_dict(golden.recipe_state_dict(model))
    return model


def image(height=64, width=96, batch=1) -> torch.Tensor:
    return golden.recipe_input((batch, 3, height, width))


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


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


def unless_quick(cases, quick):
    return [case if quick(case) else pytest.param(case, marks=pytest.mark.slow) for case in cases]


# Triton's interpreter takes minutes for a model, and has shorter tests of its own
ATTENTIONS = unless_quick(
    attention.IMPLEMENTATIONS, lambda n: n != 'triton' or torch.cuda.is_available()
)


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


@pytest.mark.parametrize(('height', 'width'), [(32, 32), (33, 47), (101, 64), (64, 131)])
def test_any_size_gives_contiguous_features_at_the_published_strides(height, width):
    model = build().eval()
    with torch.no_grad():
        features = model(image(height, width))
    assert model.out_strides == [4, 8, 16, 32]
    assert model.out_channels == list(MINI['channels'])
    for feature, channels, stride in zip(
        features, model.out_channels, model.out_strides, strict=True
    ):
        assert feature.shape == (1, channels, -(-height // stride), -(-width // stride))
        assert feature.is_contiguous()


# --- what must not matter ------------------------------------------------------------------------


@contextlib.contextmanager
def setting(change, back):
    change()
    try:
        yield
    finally:
        back()


def default_dtype(dtype):
    return setting(
        lambda: torch.set_default_dtype(dtype), lambda: torch.set_default_dtype(torch.float32)
    )


def threads(number):
    before = torch.get_num_threads()
    return setting(lambda: torch.set_num_threads(number), lambda: torch.set_num_threads(before))


CIRCUMSTANCES = {
    'float64 by default': lambda: default_dtype(torch.float64),
    'bfloat16 by default': lambda: default_dtype(torch.bfloat16),
    'another default device': lambda: torch.device('meta'),
    'gradients': torch.enable_grad,
    'inference mode': torch.inference_mode,
    'one thread': lambda: threads(1),
    'three threads': lambda: threads(3),
}


@pytest.fixture
def no_tables(monkeypatch):
    monkeypatch.setattr(attention, '_cache', type(attention._cache)())


def runnable(name, model, device):
    for stage in model.layers:
        here = device, torch.float32, stage.attention.head_dim
        if reason := attention.IMPLEMENTATIONS[name].supports(*here):
            pytest.skip(f'{name} on {device}: {reason}')
    return model.to(device)


def assert_same(features, expected):
    for feature, reference in zip(features, expected, strict=True):
        assert feature.dtype == reference.dtype
        assert relative_error(feature, reference) < 1e-5


@pytest.mark.parametrize('name', ATTENTIONS)
def test_features_are_the_same_in_any_circumstances(name, device, no_tables):
    model, x = runnable(name, build(MINI_WHOLE, attention=name).eval(), device), image().to(device)
    with torch.no_grad():
        expected = [f.clone() for f in model(x)]
    for title, circumstance in CIRCUMSTANCES.items():
        if name == 'flex' and device.type == 'cpu' and title == 'gradients':
            continue  # it has none there
        attention._cache.clear()
        with torch.no_grad():
            with circumstance():
                assert_same([f.detach() for f in model(x)], expected)
            assert_same(model(x), expected)  # with the tables that were made then


@pytest.mark.parametrize('name', ATTENTIONS)
def test_features_do_not_depend_on_neighbours_layout_hooks_or_copies(name, device):
    model, x = runnable(name, build(MINI_WHOLE, attention=name).eval(), device), image().to(device)
    hooked = copy.deepcopy(model)
    for module in hooked.modules():
        module.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        expected = model(x)
        crowd = torch.cat([1e3 * image(), image(), torch.zeros_like(image())]).to(device)
        assert_same([f[1:2] for f in model(crowd)], expected)
        for same in (
            x.contiguous(memory_format=torch.channels_last),
            x.transpose(2, 3).contiguous().transpose(2, 3),
            torch.cat([x, x], dim=3)[..., : x.shape[3]],
        ):
            assert_same(model(same), expected)
        for other in (hooked, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert_same(other(x), expected)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_model_built_under_another_default_dtype_is_the_same(dtype, no_tables):
    with default_dtype(dtype):
        model = build(MINI_WHOLE).eval()
        assert model.layers[0].blocks[0].ffn.fc1.weight.dtype == dtype
    model.float().load_state_dict(golden.recipe_state_dict(model))
    with torch.no_grad():
        assert_same(model(image()), build(MINI_WHOLE).eval()(image()))


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('name', ATTENTIONS)
def test_no_image_gives_empty_features(name, training, device):
    model = runnable(name, build(MINI_WHOLE, attention=name), device).train(training)
    x = image(64, 96)[:0].to(device).requires_grad_()
    shapes = [(0, *f.shape[1:]) for f in build(MINI_WHOLE).eval()(image(64, 96))]
    features = model(x)
    assert [tuple(f.shape) for f in features] == shapes
    sum(f.sum() for f in features).backward()
    assert x.grad.shape == x.shape
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        assert [tuple(f.shape) for f in model(x)] == shapes


# --- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_autocast_stays_within_its_rounding(dtype, tolerance):
    model, x = build().eval(), image()
    with torch.no_grad():
        expected = model(x)
        with torch.autocast('cpu', dtype):
            features = model(x)
    for feature, reference in zip(features, expected, strict=True):
        assert relative_error(feature, reference) < tolerance


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


def test_bf16_model_stays_within_its_rounding():
    model, x = build().eval(), image()
    with torch.no_grad():
        expected = model(x)
        features = copy.deepcopy(model).bfloat16()(x.bfloat16())
    for feature, reference in zip(features, expected, strict=True):
        assert feature.dtype == torch.bfloat16
        assert relative_error(feature, reference) < 0.06


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


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize('arch', VARIANTS)
def test_registry_builds_every_variant_by_name(arch):
    with torch.device('meta'):
        model = MODELS.build(dict(type='RMT', arch=arch))
    assert model.out_channels == list(VARIANTS[arch].channels)


@pytest.mark.parametrize(
    ('kwargs', 'listed'),
    [
        (dict(arch='huge'), 'tiny, small, base, large'),
        (dict(arch=dict(MINI, width=3)), 'channels'),
        (dict(arch={'channels': (16, 24, 32, 48)}), 'depths'),
        (dict(arch=dict(MINI, heads=(2, 3, 4))), 'heads needs 4 entries'),
        (dict(arch=dict(MINI, heads=(2, 3, 4, 5))), '48 channels over 5 heads'),
        (dict(arch=MINI, out_indices=(0, 4)), '0, 1, 2, 3'),
        (dict(arch=MINI, out_indices=()), '0, 1, 2, 3'),
        (dict(arch=MINI, frozen_stages=5), '-1'),
        (dict(arch=MINI, norm_cfg=dict(type='GN')), 'BN, SyncBN'),
        (dict(arch=MINI, drop_path_rate=1.5), '0 up to'),
        (dict(arch=MINI, attention='fastest'), 'naive'),
    ],
)
def test_unknown_values_raise_and_list_the_choices(kwargs, listed):
    with pytest.raises(ValueError, match=listed):
        RMT(**kwargs)


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 2, 3), (0, 2), (1,)])
def test_out_indices_select_features_and_leave_no_parameter_unused(out_indices):
    full, model = build().eval(), build(out_indices=out_indices, drop_path_rate=0.0)
    model.eval()
    features = model(image())
    for index, feature in zip(out_indices, features, strict=True):
        torch.testing.assert_close(feature, full(image())[index])
    sum(f.square().sum() for f in features).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('out_indices', [(1, 2, 3), (0, 1)])
def test_weights_of_the_whole_model_fit_a_model_with_fewer_outputs(out_indices):
    state = golden.recipe_state_dict(RMT(MINI))
    state['layers.0.Relpos.angle'] = torch.zeros(8)
    model = RMT(MINI, out_indices=out_indices)
    model.load_state_dict(state)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[name])


def test_without_output_norms_the_features_are_what_the_norms_would_take():
    full, model = build().eval(), RMT(MINI, output_norms=False).eval()
    model.load_state_dict(full.state_dict())  # which has the norms too
    assert [name for name in model.state_dict() if 'norms' in name] == []
    for i, (raw, normed) in enumerate(zip(model(image()), full(image()), strict=True)):
        assert raw.is_contiguous()
        norm = full.extra_norms[str(i)]
        torch.testing.assert_close(norm(raw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), normed)


def test_surplus_names_are_only_those_a_released_file_has():
    model = RMT(MINI, out_indices=(1, 2))
    surplus = [
        'layers.0.Relpos.angle',
        'layers.3.Relpos.decay',
        'extra_norms.0.weight',
        'extra_norms.3.bias',
        'layers.3.blocks.0.ffn.fc1.weight',
        'layers.2.downsample.norm.weight',
    ]
    kept = ['layers.4.blocks.0.ffn.fc1.weight', 'extra_norms.7.weight', 'layers.0.Relpos.other']
    kept += list(model.state_dict())
    assert [n for n in surplus + kept if model.is_surplus(n)] == surplus


def test_drop_path_rises_linearly_over_the_blocks_and_only_acts_in_training():
    model = build(drop_path_rate=0.4)
    rates = [b.drop_path.rate for stage in model.layers for b in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert build().layers[-1].blocks[-1].drop_path.rate == pytest.approx(MINI['drop_path'])
    x = image(32, 32, batch=4)
    model.eval()
    torch.testing.assert_close(model(x), build(drop_path_rate=0.0).eval()(x))
    model.train()
    torch.manual_seed(0)
    first = model(x)[-1]
    assert not torch.equal(first, model(x)[-1])


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    block = RMT(MINI, drop_path_rate=0.5).layers[-1].blocks[-1]
    torch.manual_seed(0)
    scale = block.drop_path.train().scale(torch.ones(2000, 2, 2, 3))
    assert scale.shape == (2000, 1, 1, 1)
    assert set(scale.unique().tolist()) == {0.0, 2.0}
    assert scale.mean() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(frozen_stages):
    model = build(frozen_stages=frozen_stages).train()
    before = copy.deepcopy(model.state_dict())
    x = image(batch=2).requires_grad_()  # so that there is a graph when all is frozen
    sum(f.square().sum() for f in model(x)).backward()
    prefixes = ['patch_embed.'] if frozen_stages >= 0 else []
    prefixes += [f'{kind}.{i}.' for i in range(frozen_stages) for kind in ('layers', 'extra_norms')]
    prefixes = tuple(prefixes)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(prefixes), name
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]) == name.startswith(prefixes), name


@pytest.mark.parametrize('norm_eval', [False, True])
def test_norm_eval_keeps_the_running_statistics(norm_eval):
    model = build(norm_eval=norm_eval).train()
    before = copy.deepcopy(dict(model.named_buffers()))
    model(image(batch=2))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]) == norm_eval, name


@pytest.mark.parametrize(('kind', 'norm'), [('BN', nn.BatchNorm2d), ('SyncBN', nn.SyncBatchNorm)])
def test_norm_cfg_chooses_the_norm_and_its_options(kind, norm):
    model = RMT(MINI, norm_cfg=dict(type=kind, momentum=0.03, requires_grad=False))
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 4 + 3  # stem, downsamples
    assert all(type(m) is norm and m.momentum == 0.03 for m in norms)
    assert not any(p.requires_grad for m in norms for p in m.parameters())


def test_with_cp_recomputes_the_same_features_and_gradients():
    x = image(batch=2)
    gradients, features = [], []
    for with_cp in (False, True):
        model = build(with_cp=with_cp).train()
        torch.manual_seed(0)  # the same blocks are dropped
        outputs = model(x)
        sum(f.square().sum() for f in outputs).backward()
        features.append(outputs)
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(features[0], features[1], rtol=0, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_with_cp_keeps_fewer_tensors_for_the_backward_pass():
    saved = {}
    for with_cp in (False, True):
        model, total = build(with_cp=with_cp).train(), [0]

        def count(tensor, total=total):
            total[0] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            model(image())
        saved[with_cp] = total[0]
    assert saved[True] < 0.6 * saved[False]


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


@pytest.mark.parametrize(('key', 'start'), [(None, 1.0), ('model_ema', 2.0)])
def test_init_cfg_loads_the_file_and_the_part_of_it_that_it_names(tmp_path, key, start):
    source = RMT(MINI)
    files = {
        part: {n: torch.full_like(t, value) for n, t in source.state_dict().items()}
        for part, value in (('model', 1.0), ('model_ema', 2.0))
    }
    torch.save(files, tmp_path / 'weights.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    model = RMT(MINI, init_cfg=init_cfg | ({'key': key} if key else {}))
    model.init_weights()
    for name, tensor in model.state_dict().items():
        assert (tensor == start).all(), name


def test_init_cfg_may_be_any_of_mmengine_and_a_file_has_the_last_word(tmp_path):
    ones = {n: torch.ones_like(t) for n, t in RMT(MINI).state_dict().items()}
    torch.save({'model': ones}, tmp_path / 'weights.pth')
    constant = dict(type='Constant', layer='Linear', val=0.25, bias=0.5)
    file = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    for init_cfg, weight in ((constant, 0.25), ([constant], 0.25), ([file, constant], 1.0)):
        model = RMT(MINI, init_cfg=init_cfg)
        model.init_weights()
        assert model.is_init
        assert (model.layers[0].blocks[0].ffn.fc1.weight == weight).all()


def test_part_of_a_model_is_initialised_by_it(tmp_path):
    ones = {n: torch.ones_like(t) for n, t in RMT(MINI).state_dict().items()}
    torch.save({'model': ones}, tmp_path / 'weights.pth')

    class Detector(BaseModule):
        def __init__(self):
            super().__init__()
            init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
            self.backbone = RMT(MINI, init_cfg=init_cfg)

    detector = Detector()
    detector.init_weights()
    assert all((tensor == 1).all() for tensor in detector.state_dict().values())


def test_init_weights_never_falls_back_to_noise(tmp_path):
    state = RMT(MINI).state_dict()
    del state['layers.2.blocks.1.ffn.fc1.weight']
    torch.save({'model': state}, tmp_path / 'weights.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    model = RMT(MINI, init_cfg=init_cfg)
    with pytest.raises(CheckpointError, match=r'layers\.2\.blocks\.1\.ffn\.fc1\.weight'):
        model.init_weights()
