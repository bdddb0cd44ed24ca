"""RAVLT and MAViT: equal to the released models and the formulas, both of their attentions too."""

import copy
import functools
import math

import golden
import numpy as np
import oracle_ravlt
import pytest
import torch
from allocations import Allocations
from families import FAMILIES, image, relative_error
from released_files import names_digest

from backbone import RAVLT, MAViT
from backbone.attention import rotary
from backbone.mavit import mala, mala_as_written
from backbone.ravlt import from_released, rala, rala_as_written, to_released

NAMES = ('RAVLT', 'MAViT')
WAYS = {
    'RAVLT': (rala_as_written, rala, oracle_ravlt.ravlt),
    'MAViT': (mala_as_written, mala, oracle_ravlt.mavit),
    'softmax': (rotary.softmax_as_written, rotary.softmax, oracle_ravlt.softmax),
}
"""An attention as written, without its scores, and that of the oracle."""
PARAMETERS = {'tiny': 13_347_328, 'small': 24_040_896, 'base': 46_691_296, 'large': 93_561_760}

# SHA-256 of the sorted lines "name [shape]" of a released backbone, without the tables
OFFICIAL = {
    'tiny': 'b2f7070f057c4fc4325edc2ab3e017e0f2718e26f9f5b40cb4c52b1826697d99',
    'small': '8c5112895ff6458f9e496298f3ba32868a1571fe35ae6f6d41f506aa5cd5e0c5',
    'base': 'a72d7d440db7977546a0874fe9ed8b2a7be71e459dc86c5dfcffd0d74b124257',
    'large': 'c68d93afd98eccd51a933fcaaf7939900f5d04d491e4d2055cb51ea44761364d',
}


# --- the released networks -----------------------------------------------------------------------


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base', 'large', 'tiny_faint'])
def test_features_equal_the_released_implementation(arch, device):
    size, *faint = arch.split('_')
    with torch.device('meta'):
        model = RAVLT(size)
    weights = golden.recipe_state_dict(model, bool(faint))  # of both: seconds for a large one
    for family in (RAVLT, MAViT):
        network = f'{family.__name__.lower()}_{arch}'
        with np.load(golden.GOLDEN_RAVLT) as data:
            sides = 4 * data[f'{network}|0|shape'][2:]
        for name in ('fused', 'naive') if size == 'tiny' else ('fused',):
            with torch.device('meta'):
                model = family(size, attention=name)
            model.load_state_dict(weights, assign=True)
            with torch.no_grad():
                features = model.eval().to(device)(golden.recipe_input((1, 3, *sides)).to(device))
            assert max(golden.golden_errors(features, network)) < golden.LIMIT, name


LEFT_OUT = {
    'nothing': (),
    'attention and its surroundings': ('attn.proj',),
    'local enhancement': ('attn.lepe.conv',),
    'feed-forward': ('ffn.fc2',),
    'its convolution': ('ffn.dwconv.conv',),
    'position': ('pos.conv',),
    'rotation': (),
    'gate': (),
}


@pytest.mark.parametrize('name', NAMES)
def test_golden_features_notice_any_part_left_out_of_a_last_block(name):
    network, seen = f'{name.lower()}_tiny', []
    model = FAMILIES[name].type('tiny', attention='naive').eval()
    model.load_state_dict(golden.recipe_state_dict(model))
    for stage in model.layers:
        stage.blocks[-1].register_forward_pre_hook(lambda block, args: seen.append(args))
    with torch.no_grad(), np.load(golden.GOLDEN_RAVLT) as data:
        model(golden.recipe_input(golden.INPUT_SHAPE))
        for i, (x, attend) in enumerate(seen):
            for part, layers in LEFT_OUT.items():
                block = copy.deepcopy(model.layers[i].blocks[-1])
                block._forward_pre_hooks.clear()
                for layer in map(block.get_submodule, layers):
                    layer.weight.zero_(), layer.bias.zero_()
                if part == 'gate':
                    C = x.shape[-1]
                    block.attn.qkvo.weight[3 * C :], block.attn.qkvo.bias[3 * C :] = 0, 1
                other = attend
                if part == 'rotation':
                    cos, sin = attend.keywords['tables']
                    tables = torch.ones_like(cos), torch.zeros_like(sin)
                    other = functools.partial(attend.func, tables=tables)
                feature = model.extra_norms[str(i)](block(x, other)).permute(0, 3, 1, 2)
                error = golden.golden_error(feature, data, network, i)
                assert (error > 100 * golden.LIMIT) == (part != 'nothing'), (part, i)


@pytest.mark.parametrize('arch', PARAMETERS)
@pytest.mark.parametrize('name', NAMES)
def test_names_shapes_and_parameters_are_the_released_ones(name, arch):
    with torch.device('meta'):
        model = FAMILIES[name].type(arch)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]
    assert names_digest(to_released(model.state_dict())) == OFFICIAL[arch]


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_released_names_and_shapes_go_both_ways(prefix):
    ours = {prefix + n: t for n, t in FAMILIES['RAVLT']().state_dict().items()}
    released = to_released(ours)
    assert set(released) - set(ours)
    for found in (from_released(released), from_released(ours)):
        assert list(found) == list(ours)
        assert all(torch.equal(found[name], ours[name]) for name in ours)
    assert {n: t.shape for n, t in to_released(released).items()} == {
        n: t.shape for n, t in released.items()
    }


@pytest.mark.parametrize('name', NAMES)
def test_training_begins_with_normal_weights_and_the_tables_scales(name):
    torch.manual_seed(0)
    model = FAMILIES[name].type('tiny', out_indices=(0, 1))
    for key, tensor in model.state_dict().items():
        if key.endswith('weight') and tensor.ndim > 1:
            n = tensor.numel()
            assert tensor.std() == pytest.approx(0.02, rel=4 / math.sqrt(n)), key
            assert tensor.abs().max() > 0.02 * 1.5, key  # not cut off
        elif 'gamma' in key or key.endswith('norm.weight') or ('.norm' in key and 'weight' in key):
            assert (tensor == 1).all(), key
        elif key.endswith('bias'):
            assert (tensor == 0).all(), key
    large = RAVLT('large', out_indices=(0,))
    assert (large.layers[0].blocks[0].gamma_2 == 1e-6).all()


# --- the formulas --------------------------------------------------------------------------------

EXAMPLE = {
    'RAVLT': (
        (0.506410, -0.259552, -1.025514, -1.791476),
        (0.456337, 0.003640, -0.449058, -0.901756),
        (0.567618, -0.133193, -0.834004, -1.534814),
        (0.996738, 0.369686, -0.257366, -0.884418),
    ),
    'MAViT': (
        (-1.819625, -1.707978, -1.596331, -1.484684),
        (-2.271897, -1.133090, 0.005718, 1.144525),
        (-1.150854, -1.099203, -1.047552, -0.995901),
        (0.721241, 0.627287, 0.533333, 0.439380),
    ),
    'softmax': (
        (1.627901, 0.627901, -0.372099, -1.372099),
        (1.427342, 0.427342, -0.572658, -1.572658),
        (0.890757, -0.109243, -1.109243, -2.109243),
        (1.111576, 0.111576, -0.888424, -1.888424),
    ),
}
"""What the released modules give for one head of four channels on a grid of 2 x 2."""


def attended(way, q, k, v):
    """``way`` on q k v (B, H, W, n, d)."""
    forms = {'naive': way, 'fused': way}
    attention = rotary.RotaryAttention('fused' if way in FUSED else 'naive', q.shape[-1], forms)
    return attention.prepare(q.flatten(-2))(q, k, v)


FUSED = tuple(fused for _, fused, _ in WAYS.values())


@pytest.mark.parametrize('kind', WAYS)
def test_every_attention_gives_the_worked_example(kind):
    place, c = torch.arange(4.0)[:, None], torch.arange(4.0)
    q, k, v = torch.sin(1 + place + 2 * c), torch.cos(place + 3 * c), place - c
    written, fused, oracle = WAYS[kind]
    expected = torch.tensor(EXAMPLE[kind])
    found = [attended(w, *(t.view(1, 2, 2, 1, 4) for t in (q, k, v))) for w in (written, fused)]
    for out in (*(f.view(4, 4) for f in found), oracle(q, k, v, 2, 2)):
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize('kind', WAYS)
@pytest.mark.parametrize(('H', 'W', 'd'), [(5, 9, 8), (1, 1, 4), (1, 13, 12), (16, 3, 64)])
def test_attention_without_scores_equals_that_with_them_in_both_directions(kind, H, W, d, device):
    written, fused, oracle = WAYS[kind]
    torch.manual_seed(0)
    given = [torch.randn(2, H, W, 2, d, device=device) for _ in range(4)]
    results = []
    for way in (written, fused):
        qkv = [t.clone().requires_grad_() for t in given[:3]]
        out = attended(way, *qkv)
        results.append([out, *torch.autograd.grad(out, qkv, given[3])])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm() + 1e-6
    flat = (t[1, :, :, 1].reshape(H * W, d).cpu().double() for t in given[:3])
    assert (
        relative_error(results[1][0][1, :, :, 1].reshape(H * W, d).cpu(), oracle(*flat, H, W))
        < 1e-5
    )


@pytest.mark.parametrize('kind', NAMES)
@pytest.mark.parametrize('rows', [1, 2, 5])
def test_slabs_of_rows_equal_the_whole(kind, rows, monkeypatch):
    written, fused, _ = WAYS[kind]
    q, k, v = 3 * torch.randn(3, 2, 9, 7, 2, 8)
    with torch.no_grad():
        expected = attended(written, q, k, v)
        monkeypatch.setattr(rotary, 'SLAB_BYTES', rows * q[:, :1].nbytes)
        assert len(rotary.slabs(q)) == -(-9 // rows)
        torch.testing.assert_close(attended(fused, q, k, v), expected, rtol=1e-4, atol=1e-5)
    assert len(rotary.slabs(q)) == 1  # with gradients


@pytest.mark.parametrize('training', [False, True], ids=['inference', 'training'])
@pytest.mark.parametrize('kind', WAYS)
def test_no_tensor_is_larger_than_the_queries_of_the_image(kind, training):
    def allocated(way, H, W):
        qkv = [torch.randn(1, H, W, 2, 8, requires_grad=training) for _ in range(3)]
        with Allocations() as counted:
            out = attended(way, *qkv)
            if training:
                out.sum().backward()
        return counted.sizes, qkv[0].nbytes

    written, fused, _ = WAYS[kind]
    sizes, queries = allocated(fused, 24, 40)
    assert max(sizes) <= 2 * queries  # a sum over places is read in pairs
    more, _ = allocated(fused, 48, 40)
    assert sum(more) <= 2.1 * sum(sizes)
    if kind == 'softmax':
        assert max(allocated(written, 24, 40)[0]) > 20 * queries  # the count does find scores


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('kind', NAMES)
def test_linear_attention_of_halves_is_that_of_float32_rounded_once(kind, dtype):
    for way in WAYS[kind][:2]:
        q, k, v = 4 * torch.randn(3, 1, 40, 50, 1, 16).to(dtype)
        expected = attended(way, q.float(), k.float(), v.float()).to(dtype)
        for amp in (False, True):
            with torch.autocast('cpu', dtype, enabled=amp):
                found = attended(way, q, k, v)
            assert found.dtype == dtype
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(('height', 'width'), [(64, 64), (75, 118)])
def test_features_and_gradients_equal_the_float64_formula_with_live_bn(name, height, width, device):
    family = FAMILIES[name]
    model = family.build(drop_path_rate=0.0).train().to(device)
    x = image(height, width, batch=2).to(device).requires_grad_()
    weights = {n: t.detach().cpu().double() for n, t in to_released(model.state_dict()).items()}
    released = {n: next(iter(to_released({n: p}))) for n, p in model.named_parameters()}
    for key in released.values():
        weights[key].requires_grad_()
    x64 = x.detach().cpu().double().requires_grad_()
    size = model.variant
    linear = WAYS[name][2]
    expected = oracle_ravlt.Oracle(weights, size.depths, size.heads, linear, live_bn=True)(x64)
    features = model(x)
    loss = sum((f * golden.recipe_input(f.shape).to(device)).sum() for f in features)
    loss64 = sum((f * golden.recipe_input(f.shape).double()).sum() for f in expected)
    loss.backward()
    loss64.backward()
    for feature, reference in zip(features, expected, strict=True):
        assert (feature.cpu() - reference).abs().max() < golden.TOLERANCE
    assert relative_error(x.grad.cpu(), x64.grad) < golden.TOLERANCE
    for key, parameter in model.named_parameters():
        truth = weights[released[key]].grad
        # as in test_rmt.py: a bias before a live norm has a gradient of rounding alone
        beside = weights[released[key].replace('.bias', '.weight')].grad
        scale = max(truth.norm(), beside.norm())
        error = (parameter.grad.cpu().double().flatten() - truth.flatten()).norm() / scale
        assert error < golden.TOLERANCE, key


# --- what is not theirs --------------------------------------------------------------------------


def test_a_name_of_another_familys_attention_is_told_to_be_that():
    with pytest.raises(ValueError, match=r'choose from naive, fused, auto \(kernel, .*RMT\)'):
        FAMILIES['RAVLT'](attention='kernel')


def test_auto_is_fused():
    attentions = [
        FAMILIES['RAVLT'](attention=name).layers[0].attention for name in ('auto', 'fused')
    ]
    grids = [attention.prepare(torch.zeros(1, 4, 6, 16)) for attention in attentions]
    assert {grid.func for grid in grids} == {rala}


def test_heads_must_be_multiples_of_four_wide():
    with pytest.raises(ValueError, match=r'48 channels over 8 heads.*multiple of 4'):
        RAVLT(FAMILIES['RAVLT'].mini | dict(heads=(1, 2, 2, 8)))
