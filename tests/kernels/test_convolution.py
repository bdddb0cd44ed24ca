"""Convolutions with gradients of our own equal the formula, bit for bit the same in every run."""

import pytest
import torch
from torch import nn

from backbone import layers
from backbone.kernels.convolution import depthwise, to_nchw
from backbone.kernels.layers import accelerate


def fast(layer):
    """The same layer in its fast form."""
    accelerate(layer)
    return layer


def assert_same_gradients(fast, plain, x, *rest):
    """Outputs and gradients of a fast layer in float32, and of a plain one in float64."""
    plain.load_state_dict(fast.state_dict())
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    out, expected = fast(a, *rest), plain.double()(b, *rest)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(expected)
    out.backward(weight.float())
    expected.backward(weight)
    for (name, p), q in zip(fast.named_parameters(), plain.parameters(), strict=True):
        # the bias in front of a norm has no gradient but rounding errors
        error = (p.grad.double() - q.grad).norm() / q.grad.norm().clamp_min(10)
        assert error < 1e-4, name
    torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-4)


# --- depthwise -----------------------------------------------------------------------------------


@pytest.mark.parametrize('activate', [False, True])
@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('kernel_size', [3, 5])
@pytest.mark.parametrize(
    'shape', [(1, 1, 1, 8), (2, 13, 33, 12), (1, 25, 70, 72), (2, 9, 17, 200)], ids=str
)
@pytest.mark.parametrize('kernels', [True, False], ids=['kernels', 'no-kernels'])
def test_depthwise_and_its_gradients_equal_the_formula(
    shape, kernel_size, residual, activate, kernels, monkeypatch
):
    monkeypatch.setattr('backbone.kernels.build.available', lambda: kernels)

    class Fused(layers.DepthwiseConv):
        def forward(self, x):  # x + 0: what it may overwrite is nobody else's
            return depthwise(x + 0, self.conv, residual, activate)

    class Formula(layers.DepthwiseConv):
        def forward(self, x):
            x = nn.functional.gelu(x) if activate else x
            return x + super().forward(x) if residual else super().forward(x)

    torch.manual_seed(0)
    args = shape[-1], kernel_size
    x = torch.randn(shape)
    fused, formula = Fused(*args), Formula(*args)
    assert_same_gradients(fused, formula, x)
    with torch.no_grad():
        expected = formula(x.double()).float()
        torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5)


def test_depthwise_gradients_are_the_same_in_every_run():
    torch.manual_seed(0)
    conv, x = fast(layers.DepthwiseConv(72, 5)), torch.randn(2, 25, 70, 72)
    grads = []
    for _ in range(3):
        conv.zero_grad()
        conv(x).square().sum().backward()
        grads.append(conv.conv.weight.grad.clone())
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_whoever_needs_what_activation_overwrites_is_told():
    ffn, x = fast(layers.FFN(8, 24)), torch.randn(1, 5, 6, 8)
    hidden = ffn.fc1(x)
    kept = hidden.square()  # its gradient needs ``hidden``
    out = depthwise(hidden, ffn.dwconv.conv, residual=True, activate=True)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        (kept.sum() + out.sum()).backward()


@pytest.mark.parametrize('shape', [(1, 3, 7, 5), (2, 20, 9, 1), (2, 32, 16, 24)], ids=str)
@pytest.mark.parametrize('layout', [torch.channels_last, torch.contiguous_format], ids=str)
def test_change_of_layout_moves_every_value(shape, layout):
    x = torch.randn(shape).to(memory_format=layout)
    out = to_nchw(x)
    assert out.is_contiguous()
    assert torch.equal(out, x)


@pytest.mark.parametrize('kernel_size', [3, 5])
def test_sums_over_an_image_lose_no_small_part(kernel_size):
    # three tiles of a row: 2^24, 1, -2^24, of which float32 keeps 0 and the sum is 1
    conv, x = fast(layers.DepthwiseConv(8, kernel_size)), torch.ones(1, 1, 96, 8)
    grad = torch.zeros_like(x)
    grad[:, :, 5], grad[:, :, 40], grad[:, :, 70] = 2.0**24, 1, -(2.0**24)
    conv(x).backward(grad)
    middle = kernel_size // 2
    assert torch.equal(conv.conv.bias.grad, torch.ones(8))
    weights = conv.conv.weight.grad[:, 0]
    assert torch.equal(weights[:, middle], torch.ones(8, kernel_size))
