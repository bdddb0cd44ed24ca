"""The CPU's forms of the layers compute what the plain ones do, and step aside where they must."""

import copy

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from released_files import MINI, MINI_RAVLT
from test_convolution import assert_same_gradients, fast
from torch import nn

from backbone import RAVLT, RMT, layers
from backbone.attention import StageAttention
from backbone.kernels import layers as fast_layers


def pair(kind, *args):
    """A layer in its fast and in its plain form, with weights of their own."""
    torch.manual_seed(0)
    return fast(kind(*args)), kind(*args)


def attend(name='auto', H=4, W=6):
    return StageAttention(name, 2, 4, 4, axial=False).prepare(torch.zeros(1, H, W, 8))


# --- the layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('size', [(32, 32), (37, 51)], ids=str)
def test_stem_and_its_gradients_equal_the_formula(size, training):
    stem, plain = (s.train(training) for s in pair(layers.PatchEmbed, 16, dict(type='BN')))
    assert_same_gradients(stem, plain, torch.randn(2, 3, *size))


@pytest.mark.parametrize('training', [False, True])
def test_downsample_and_its_gradients_equal_the_formula(training):
    down, plain = (d.train(training) for d in pair(layers.Downsample, 16, 24, dict(type='BN')))
    assert_same_gradients(down, plain, torch.randn(2, 13, 18, 16))


@pytest.mark.parametrize('kind', [layers.PatchEmbed, layers.Downsample])
def test_norms_of_fixed_statistics_are_folded_without_a_difference(kind):
    sizes, shape = ((16,), (2, 3, 37, 51)) if kind is layers.PatchEmbed else ((6, 8), (2, 9, 7, 6))
    torch.manual_seed(0)
    layer, x = fast(kind(*sizes, dict(type='BN'))), torch.randn(shape)
    layer(x)  # statistics that are not 0 and 1
    expected = layer.eval()(x)
    assert expected.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(layer.train()(x), layer(x))  # batch statistics are never folded


@pytest.mark.parametrize('shape', [(1, 1, 1, 8), (2, 13, 33, 12), (1, 9, 17, 70)], ids=str)
def test_feed_forward_and_its_gradients_equal_the_formula(shape):
    assert_same_gradients(*pair(layers.FFN, shape[-1], 3 * shape[-1]), 3 * torch.randn(shape))


@pytest.mark.parametrize('frozen', [False, True])
def test_feed_forward_gives_the_same_with_and_without_gradients(frozen):
    ffn = fast(layers.FFN(8, 16)).requires_grad_(not frozen)
    x = torch.randn(1, 4, 6, 8)
    with torch.no_grad():
        expected = ffn(x)
    torch.testing.assert_close(ffn(x), expected)
    torch.testing.assert_close(ffn(x.requires_grad_()), expected)


def test_gradients_of_a_feed_forward_can_be_computed_twice():
    ffn, x = fast(layers.FFN(8, 24)), torch.randn(1, 5, 6, 8)
    out = ffn(x).square().sum()
    first, second = (
        torch.autograd.grad(out, list(ffn.parameters()), retain_graph=True) for _ in range(2)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize('height', [9, 16, 17, 25])
def test_feed_forward_in_slabs_equals_the_whole(height, monkeypatch):
    torch.manual_seed(0)
    ffn, x = fast(layers.FFN(8, 24)), torch.randn(2, height, 6, 8)
    with torch.no_grad():
        expected = ffn(x)
        monkeypatch.setattr(fast_layers, 'SLAB_BYTES', 1)  # the least: eight rows
        seen, hidden = [], ffn.hidden
        ffn.hidden = lambda x: seen.append(x.shape[1]) or hidden(x)
        torch.testing.assert_close(ffn(x), expected)
    assert len(seen) == -(-height // 8)
    assert max(seen) <= 10


def test_a_slab_of_hidden_activations_fills_the_bytes_that_are_stated(monkeypatch):
    ffn, x, seen = fast(layers.FFN(8, 24)), torch.randn(2, 40, 6, 8), []
    monkeypatch.setattr(fast_layers, 'SLAB_BYTES', 12 * 2 * 6 * 24 * 4)  # twelve rows of float32
    hidden = ffn.hidden
    ffn.hidden = lambda x: seen.append(x.shape[1]) or hidden(x)
    with torch.no_grad():
        ffn(x)
    assert seen == [13, 14, 14, 5]  # and a row more on each side that has one


@pytest.mark.parametrize('gamma', [None, 0.3])
@pytest.mark.parametrize('drop_path', [0.0, 0.5])
def test_block_equals_the_plain_one_in_both_directions(gamma, drop_path):
    x, results = torch.randn(4, 4, 6, 8), []
    blocks = pair(layers.Block, 8, 2, 2.0, drop_path, gamma)
    blocks[1].load_state_dict(blocks[0].state_dict())
    for block in blocks:
        leaf = x.clone().requires_grad_()
        torch.manual_seed(1)  # the same samples are dropped
        out = block.train()(leaf, attend())
        out.square().sum().backward()
        results.append([out, leaf.grad, *(p.grad for p in block.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        fast_out, plain_out = (block.eval()(x, attend()) for block in blocks)
    torch.testing.assert_close(fast_out, plain_out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('training', [False, True])
def test_block_leaves_its_input_as_it_is(training):
    block = fast(layers.Block(8, 2, 2.0, 0.0, None)).train(training)
    x = torch.randn(1, 4, 6, 8)
    before = x.clone()
    with torch.set_grad_enabled(training):
        block(x, attend())
    assert torch.equal(x, before)


# --- where they step aside -----------------------------------------------------------------------


def test_every_layer_has_its_fast_form_unless_the_formula_is_asked_for():
    def of_families(attention):
        models = RMT(MINI, attention=attention), RAVLT(MINI_RAVLT, attention=attention)
        return [module for model in models for module in model.modules()]

    plain = {type(m).__module__ for m in of_families('naive')}
    assert 'backbone.layers' in plain
    assert 'backbone.kernels.layers' not in plain
    modules = of_families('fused')
    for kind, form in fast_layers.FAST.items():
        assert not [m for m in modules if type(m) is kind]
        assert [m for m in modules if type(m) is form]


def test_layers_keep_the_names_of_their_weights():
    assert list(RMT(MINI, attention='naive').state_dict()) == list(RMT(MINI).state_dict())


@pytest.mark.parametrize('training', [False, True])
def test_hook_on_any_layer_is_called_and_sees_what_the_layer_gives(training):
    torch.manual_seed(0)
    plain = RMT(MINI, attention='naive', drop_path_rate=0.0).train(training)
    model = RMT(MINI, drop_path_rate=0.0).train(training)
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 96)
    seen = []
    for net in (plain, model):
        kept = {}
        handles = [
            module.register_forward_hook(
                lambda m, i, out, name=name, kept=kept: kept.update({name: out})
            )
            for name, module in net.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear, layers.FFN, layers.Retention))
        ]
        with torch.set_grad_enabled(training):
            net(x)
        [handle.remove() for handle in handles]
        seen.append(kept)
    assert list(seen[0]) == list(seen[1])
    for name, value in seen[0].items():
        torch.testing.assert_close(seen[1][name], value, rtol=1e-3, atol=1e-3, msg=name)


def test_norms_that_mmengine_made_of_sync_bn_are_folded(monkeypatch):
    torch.manual_seed(0)
    model = RMT(MINI, norm_cfg=dict(type='SyncBN')).eval()
    reverted = revert_sync_batchnorm(copy.deepcopy(model))
    assert not [m for m in reverted.modules() if isinstance(m, nn.SyncBatchNorm)]
    x, folded = torch.randn(1, 3, 64, 96), []
    conv_norm = fast_layers.conv_norm
    monkeypatch.setattr(
        fast_layers, 'conv_norm', lambda *args: folded.append(args) or conv_norm(*args)
    )
    with torch.no_grad():
        torch.testing.assert_close(reverted(x), model(x))
    assert len(folded) == 2 * (4 + 3)  # stem, downsamples, of both


def test_layer_put_in_the_place_of_another_is_called():
    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model, x = RMT(MINI).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)[0]
        ffn = model.layers[0].blocks[0].ffn
        other = Twice(ffn.fc1.in_features, ffn.fc1.out_features)
        other.load_state_dict(ffn.fc1.state_dict())
        ffn.fc1 = other
        assert not torch.allclose(model(x)[0], before)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_another_dtype_goes_the_plain_way(dtype, monkeypatch):
    monkeypatch.setattr(fast_layers, 'depthwise', None)
    block = fast(layers.Block(8, 2, 2.0, 0.0, None)).to(dtype)
    assert block(torch.randn(1, 4, 6, 8, dtype=dtype), attend('naive')).dtype == dtype


@pytest.mark.parametrize('kind', [layers.PatchEmbed, layers.Downsample])
@pytest.mark.parametrize('part', [nn.Conv2d, nn.BatchNorm2d, (nn.Conv2d, nn.BatchNorm2d)], ids=str)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_norms_are_folded_in_float32_alone(kind, part, dtype):
    # bit for bit, or the same refusal: folded in bfloat16, weights would lose their digits twice
    sizes, shape = ((16,), (2, 3, 16, 16)) if kind is layers.PatchEmbed else ((6, 8), (2, 9, 7, 6))
    x = torch.randn(shape)
    for given in (torch.float32, dtype):
        results = []
        for layer in pair(kind, *sizes, dict(type='BN')):
            torch.manual_seed(1)
            [nn.init.normal_(p) for p in layer.parameters()]
            for module in layer.eval().modules():
                if isinstance(module, part):
                    module.to(dtype)
            with torch.no_grad():
                try:
                    results.append(layer(x.to(given)))
                except RuntimeError as error:
                    results.append(str(error))
        assert type(results[0]) is type(results[1])
        if isinstance(results[0], torch.Tensor):
            assert results[0].dtype == results[1].dtype
            assert torch.equal(*results)
