"""The layers' shortcuts compute what the plain sums and products do."""

import pytest
import torch
from released_files import MINI
from torch import nn

from backbone import RMT, kernel, layers
from backbone.layers import FFN, Block, DepthwiseConv, PatchEmbed, ResidualConv2d
from backbone.retention import WHOLE, decay_rates


def test_residual_convolution_adds_its_input():
    torch.manual_seed(0)
    fast = ResidualConv2d(6, 6, 3, padding=1, groups=6)
    plain = nn.Conv2d(6, 6, 3, padding=1, groups=6)
    plain.load_state_dict(fast.state_dict())
    x, y = (torch.randn(2, 6, 7, 9).requires_grad_() for _ in range(2))
    y.data.copy_(x.data)
    out, expected = fast(x), y + plain(y)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(fast.weight.grad, plain.weight.grad)


def test_residual_convolution_does_not_round_one_plus_weight_in_half_precision():
    torch.manual_seed(0)
    conv = DepthwiseConv(4, 3, residual=True)
    nn.init.constant_(conv.conv.weight, 1e-3)  # lost beside a 1 in bfloat16
    nn.init.zeros_(conv.conv.bias)
    x = torch.randn(1, 5, 5, 4)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        out = conv(x)
    assert out.dtype == torch.float32  # the residual stream
    torch.testing.assert_close(out - x, conv(x) - x, rtol=0.02, atol=1e-5)


def block(gamma=None, drop_path=0.0, attention='auto'):
    torch.manual_seed(0)
    return Block(8, 2, 2.0, drop_path, gamma, attention, axial=False)


def tables(attention='auto', H=4, W=6):
    return WHOLE[attention].tables(4, decay_rates(2, 4), H, W)


@pytest.mark.parametrize('gamma', [None, 0.3])
@pytest.mark.parametrize('drop_path', [0.0, 0.5])
def test_block_equals_its_formula(gamma, drop_path):
    layer, positions = block(gamma, drop_path).train(), tables()
    x = torch.randn(4, 4, 6, 8)
    torch.manual_seed(1)
    out = layer(x, positions)
    torch.manual_seed(1)
    scale = gamma or 1.0
    y = x + layer.pos.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) - x
    for branch in (
        lambda y: layer.retention(layer.retention_layer_norm(y), positions),
        lambda y: layer.ffn(layer.final_layer_norm(y)),
    ):
        kept = layer.drop_path.scale(y)
        y = y + branch(y) * scale * (1.0 if kept is None else kept)
    torch.testing.assert_close(out, y)


@pytest.mark.parametrize('training', [False, True])
def test_block_leaves_its_input_as_it_is(training):
    layer, x = block().train(training), torch.randn(1, 4, 6, 8)
    before = x.clone()
    with torch.set_grad_enabled(training):
        layer(x, tables())
    assert torch.equal(x, before)


@pytest.mark.parametrize('gamma', [None, 0.3])
def test_gradients_of_a_block_equal_those_of_the_formula(gamma):
    x = torch.randn(2, 4, 6, 8)
    gradients = []
    for attention in ('auto', 'naive'):
        layer, leaf = block(gamma, attention=attention), x.clone().requires_grad_()
        layer(leaf, tables(attention)).square().sum().backward()
        gradients.append([leaf.grad, *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('gamma', [None, 0.3])
def test_residual_stream_stays_float32_under_autocast(gamma):
    layer, x = block(gamma), torch.randn(1, 4, 6, 8)
    with torch.autocast('cpu', torch.bfloat16):
        assert layer(x, tables()).dtype == torch.float32


@pytest.mark.parametrize('frozen', [False, True])
def test_feed_forward_gives_the_same_with_and_without_gradients(frozen):
    ffn = block().ffn.requires_grad_(not frozen)
    x = torch.randn(1, 4, 6, 8)
    with torch.no_grad():
        expected = ffn(x)
    torch.testing.assert_close(ffn(x), expected)
    torch.testing.assert_close(ffn(x.requires_grad_()), expected)


def assert_same_gradients(fast, plain, x):
    """Outputs and gradients of a fast layer in float32, and of a plain one in float64."""
    plain.load_state_dict(fast.state_dict())
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    out, expected = fast(a), plain.double()(b)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(expected)
    out.backward(weight.float())
    expected.backward(weight)
    for (name, p), q in zip(fast.named_parameters(), plain.parameters(), strict=True):
        # the bias in front of a norm has no gradient but rounding errors
        error = (p.grad.double() - q.grad).norm() / q.grad.norm().clamp_min(10)
        assert error < 1e-4, name
    torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('kernel_size', [3, 5])
@pytest.mark.parametrize(
    'shape', [(1, 1, 1, 8), (2, 13, 33, 12), (1, 25, 70, 72), (2, 9, 17, 200)], ids=str
)
def test_depthwise_convolution_and_its_gradients_equal_the_formula(shape, kernel_size, residual):
    torch.manual_seed(0)
    args = shape[-1], kernel_size, residual
    fast, plain = DepthwiseConv(*args), DepthwiseConv(*args, fast=False)
    assert_same_gradients(fast, plain, torch.randn(shape))


@pytest.mark.parametrize('shape', [(1, 1, 1, 8), (2, 13, 33, 12), (1, 9, 17, 70)], ids=str)
def test_feed_forward_and_its_gradients_equal_the_formula(shape):
    torch.manual_seed(0)
    fast, plain = (FFN(shape[-1], 3 * shape[-1], fast=fast) for fast in (True, False))
    assert_same_gradients(fast, plain, 3 * torch.randn(shape))


def test_gradients_of_a_feed_forward_can_be_computed_twice():
    ffn, x = FFN(8, 24), torch.randn(1, 5, 6, 8)
    out = ffn(x).square().sum()
    first, second = (
        torch.autograd.grad(out, list(ffn.parameters()), retain_graph=True) for _ in range(2)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_whoever_needs_what_activation_overwrites_is_told():
    ffn, x = FFN(8, 24), torch.randn(1, 5, 6, 8)
    hidden = ffn.fc1(x)
    kept = hidden.square()  # its gradient needs ``hidden``
    out = ffn.dwconv(hidden)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        (kept.sum() + out.sum()).backward()


@pytest.mark.parametrize('shape', [(1, 3, 7, 5), (2, 20, 9, 1), (2, 32, 16, 24)], ids=str)
def test_change_of_layout_moves_every_value(shape):
    x = torch.randn(shape).to(memory_format=torch.channels_last)
    out = kernel.nchw(x)
    assert out.is_contiguous()
    assert torch.equal(out, x)


def test_depthwise_gradients_are_the_same_in_every_run():
    torch.manual_seed(0)
    conv, x = DepthwiseConv(72, 5), torch.randn(2, 25, 70, 72)
    grads = []
    for _ in range(3):
        conv.zero_grad()
        conv(x).square().sum().backward()
        grads.append(conv.conv.weight.grad.clone())
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('size', [(32, 32), (37, 51)], ids=str)
def test_stem_and_its_gradients_equal_the_formula(size, training):
    torch.manual_seed(0)
    fast, plain = (PatchEmbed(16, dict(type='BN'), fast).train(training) for fast in (True, False))
    assert_same_gradients(fast, plain, torch.randn(2, 3, *size))


def test_stem_without_gradients_equals_the_formula():
    torch.manual_seed(0)
    stem, x = PatchEmbed(16, dict(type='BN')), torch.randn(2, 3, 37, 51)
    stem(x)  # statistics that are not 0 and 1
    expected = stem.eval()(x)
    assert expected.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(stem(x), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(stem.train()(x), stem(x))  # batch statistics are never folded


@pytest.mark.parametrize('height', [9, 16, 17, 25])
def test_feed_forward_in_slabs_equals_the_whole(height, monkeypatch):
    torch.manual_seed(0)
    ffn, x = FFN(8, 24), torch.randn(2, height, 6, 8)
    with torch.no_grad():
        expected = ffn(x)
        monkeypatch.setattr(layers, 'SLAB_BYTES', 1)  # the least: eight rows
        seen = []
        ffn.fc1.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
        torch.testing.assert_close(ffn(x), expected)
    assert len(seen) == -(-height // 8)
    assert max(seen) <= 10


def test_naive_attention_goes_with_plain_layers():
    fast = {m.fast for m in RMT(MINI, attention='auto').modules() if hasattr(m, 'fast')}
    plain = {m.fast for m in RMT(MINI, attention='naive').modules() if hasattr(m, 'fast')}
    assert (fast, plain) == ({True}, {False})
