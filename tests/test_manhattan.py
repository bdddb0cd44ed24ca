"""ManhattanAttention is the paper's formula, as a layer for any grid of tokens."""

from collections.abc import Sequence

import pytest
import torch
from oracle import Oracle, manhattan_attention
from torch._dynamo.testing import CompileCounterWithBackend

from backbone import RMT, ManhattanAttention, layers
from backbone.attention import IMPLEMENTATIONS, NAMES
from backbone.kernels import layers as fast

KINDS = pytest.mark.parametrize('axial', [False, True], ids=['whole', 'axial'])
SLOW = () if torch.cuda.is_available() else ('triton',)  # minutes in an interpreter
names = pytest.mark.parametrize(
    'name', [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NAMES]
)
HEADS, DIM = 3, 24


def build(device: torch.device, name: str = 'auto', **arguments: float) -> ManhattanAttention:
    """With weights as large as after training, or no score would matter."""
    torch.manual_seed(0)
    layer = ManhattanAttention(DIM, HEADS, attention=name, **arguments)
    for tensor in layer.parameters():
        torch.nn.init.normal_(tensor, std=0.3)
    return layer.to(device)


def skip_unless_here(name: str, device: torch.device) -> None:
    if name in IMPLEMENTATIONS:
        reason = IMPLEMENTATIONS[name].supports(device, torch.float32, DIM // HEADS)
        if reason:
            pytest.skip(f'{name} on {device}: {reason}')


def formula(weights: dict, x: torch.Tensor, span: float, axial: bool) -> torch.Tensor:
    oracle = Oracle(weights, None)
    q, k, v = (oracle.linear(f'{part}_proj', x) for part in 'qkv')
    out = manhattan_attention(q, k * (DIM // HEADS) ** -0.5, v, HEADS, span, axial)
    return oracle.linear('out_proj', out + oracle.depthwise('lepe.conv', v))


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    ours, theirs = ours.detach().cpu().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm())


def assert_close(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> None:
    """Each to 1e-5 of its size; what nearly cancels, the keys' bias, to 1e-7 of the largest."""
    largest = max(float(t.norm()) for t in theirs)
    for a, b in zip(ours, theirs, strict=True):
        limit = 1e-5 * max(float(b.norm()), 1e-2 * largest)
        assert float((a.cpu().double() - b.double()).norm()) < limit, tuple(b.shape)


@KINDS
@names
@pytest.mark.parametrize(('grid', 'span'), [((7, 9), 4), ((1, 13), 6.5)], ids=str)
def test_it_is_the_formula_forward_and_backward(axial, name, grid, span, device):
    skip_unless_here(name, device)
    layer = build(device, name, span=span, axial=axial)
    trainable = name != 'flex' or device.type != 'cpu'  # PyTorch has no gradients of it there
    layer.requires_grad_(trainable)
    x = torch.randn(2, *grid, DIM, generator=torch.Generator().manual_seed(1))
    ours = x.to(device, copy=True).requires_grad_(trainable)
    weights = {k: t.detach().cpu().double() for k, t in layer.state_dict().items()}
    theirs = [x.double(), *weights.values()]
    for tensor in theirs:
        tensor.requires_grad_()
    expected = formula(weights, theirs[0], span, axial)
    out = layer(ours)
    assert out.dtype == torch.float32
    assert error(out, expected) < 1e-5
    if trainable:
        upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
        found = torch.autograd.grad(out, [ours, *layer.parameters()], upstream.to(device))
        assert_close(found, torch.autograd.grad(expected, theirs, upstream.double()))


def test_it_is_what_a_block_of_rmt_computes_and_takes_its_weights(device):
    model = RMT('tiny', out_indices=(0,)).eval().to(device)
    stage, heads = model.layers[0], model.variant.heads[0]
    theirs = stage.blocks[0].retention
    ours = ManhattanAttention(64, heads, axial=True, span=4).to(device)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 6, 9, 64, device=device)
    torch.testing.assert_close(ours(x), theirs(x, stage.attention.prepare(x)))


def test_it_begins_with_the_weights_that_rmt_begins_with():
    layer = ManhattanAttention(128, 4)
    for name, weight in layer.named_parameters():
        if name.endswith('_proj.bias'):
            assert not weight.any()
        elif name.endswith('_proj.weight'):
            assert float(weight.std()) == pytest.approx(0.02, rel=0.05)


def test_without_arguments_it_is_whole_with_a_span_of_four_and_fastest(device):
    x = torch.randn(1, 4, 5, 24, device=device)
    plain = ManhattanAttention(24, 3).to(device)
    named = ManhattanAttention(24, 3, axial=False, span=4, attention='auto').to(device)
    named.load_state_dict(plain.state_dict())
    assert torch.equal(plain(x), named(x))
    assert plain.attention == named.attention


@pytest.mark.parametrize(
    ('name', 'home'), [('naive', layers), ('fused', fast), ('auto', fast)], ids=str
)
def test_only_the_formula_has_pytorchs_own_layers(name, home):
    assert type(ManhattanAttention(8, 2, attention=name).lepe) is home.DepthwiseConv


@KINDS
@pytest.mark.parametrize('name', [n for n in NAMES if n not in ('flex', 'triton')])
@pytest.mark.parametrize(
    ('dtype', 'tolerance'),
    [(torch.float64, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 5e-3)],
    ids=str,
)
def test_every_dtype_goes_through_in_both_directions(axial, name, dtype, tolerance, device):
    skip_unless_here(name, device)
    layer = build(device, name, axial=axial).to(dtype)
    x = torch.randn(1, 5, 7, DIM, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    weights = {k: t.detach().cpu().double() for k, t in layer.state_dict().items()}
    out = layer(x.requires_grad_())
    out.sum().backward()
    assert out.dtype == x.grad.dtype == layer.q_proj.weight.grad.dtype == dtype
    assert error(out, formula(weights, x.detach().cpu().double(), 4, axial)) < tolerance


def test_float64_keeps_its_digits_in_the_formula():
    layer = build(torch.device('cpu'), 'naive').double()
    x = torch.randn(1, 5, 7, DIM, dtype=torch.float64)
    # the tables are float32
    assert error(layer(x), formula(dict(layer.state_dict()), x, 4, axial=False)) < 1e-7


@KINDS
def test_one_compiled_graph_serves_every_grid(axial):
    torch._dynamo.reset()
    layer = build(torch.device('cpu'), axial=axial)
    counter = CompileCounterWithBackend('eager')
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    for grid in ((4, 6), (7, 9), (5, 5)):
        x, results = torch.randn(2, *grid, DIM), []
        for run in (layer, compiled):
            out = run(x)
            weights = list(layer.parameters())
            results.append([out, *torch.autograd.grad(out.square().sum(), weights)])
        assert_close(*([t.detach() for t in each] for each in results))
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        (dict(heads=5), 'heads: 64 channels over 5 heads'),
        (dict(heads=64), 'heads: 64 channels over 64 heads'),
        (dict(heads=0), 'heads: 64 channels over 0 heads'),
        (dict(dim=0), 'heads: 0 channels over 4 heads'),
        (dict(span=-1), 'span -1: choose a number from 0 on'),
        (dict(span=float('nan')), 'span nan: choose'),
        (dict(span=float('inf')), 'span inf: choose'),
        (dict(attention='fastest'), "attention 'fastest' is unknown; choose from naive, "),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_in_one_line(arguments, told):
    with pytest.raises(ValueError, match=told) as caught:
        ManhattanAttention(**dict(dim=64, heads=4) | arguments)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('shape', [(2, 30, 24), (2, 24, 5, 6), (5, 6, 24)], ids=str)
def test_a_tensor_of_another_shape_is_told_what_is_wanted(shape):
    with pytest.raises(ValueError, match=r'\(B, H, W, 24\) wanted, not'):
        ManhattanAttention(24, 3)(torch.zeros(shape))


def test_a_span_of_zero_gives_every_head_the_same_decay():
    ManhattanAttention(24, 3, span=0)(torch.zeros(1, 2, 3, 24))
