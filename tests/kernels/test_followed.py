"""Whoever follows, replaces or reads what the layers compute gets what the plain layers give."""

import copy
from collections.abc import Callable

import pytest
import torch
from families import FAMILIES
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import register_module_forward_hook

from backbone import RMT, layers
from backbone.attention import StageAttention
from backbone.kernels.layers import accelerate
from backbone.network import Network

SELDOM = (('RAVLT', False), ('MAViT', False), ('MAViT', True))
PARAMETRIZED = (nn.Conv2d, nn.Linear)


def image(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(seed))


def pair(plain_attention: str = 'naive', family: str = 'RMT') -> tuple[Network, Network]:
    """A network of plain layers and one of fast ones, of the same weights."""
    torch.manual_seed(0)
    plain = FAMILIES[family](attention=plain_attention, drop_path_rate=0.0).eval()
    fast = FAMILIES[family](drop_path_rate=0.0).eval()
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def assert_same(compute: Callable[[RMT], object], tolerance: float = 1e-4) -> None:
    plain, fast = (compute(model) for model in pair())
    torch.testing.assert_close(fast, plain, rtol=tolerance, atol=tolerance)


# --- tracers and transformations -----------------------------------------------------------------


@pytest.mark.parametrize(
    ('family', 'gradients'),
    [
        *(('RMT', False), ('RMT', True), ('RAVLT', True)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SELDOM),
    ],
)
@pytest.mark.parametrize(
    'record', [lambda m: torch.jit.trace(m, image()), lambda m: make_fx(m)(image())],
    ids=['jit.trace', 'make_fx'],
)  # fmt: skip
def test_what_is_recorded_computes_another_image(family, gradients, record):
    _, model = pair(family=family)
    with torch.set_grad_enabled(gradients):
        recorded = record(model)
        torch.testing.assert_close(recorded(image(1)), model(image(1)), rtol=1e-4, atol=1e-4)


def loss(model: Network, parameters: dict) -> torch.Tensor:
    features = torch.func.functional_call(model, parameters, (image(),))
    return sum(f.square().mean() for f in features)


def test_functional_call_takes_other_parameters():
    def compute(model):
        parameters = {k: 1.1 * p.detach() for k, p in model.named_parameters()}
        wanted = [p.requires_grad_() for p in parameters.values()]
        return torch.autograd.grad(loss(model, parameters), wanted)

    assert_same(compute)


@pytest.mark.parametrize('family', FAMILIES)
def test_grad_of_torch_func_equals_backward(family):
    _, model = pair(family=family)
    parameters = {k: p.detach() for k, p in model.named_parameters()}
    gradients = torch.func.grad(lambda p: loss(model, p))(parameters)
    loss(model, dict(model.named_parameters())).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(
    ('kind', 'sizes', 'shape'),
    [
        (layers.DepthwiseConv, (8, 5), (3, 1, 5, 6, 8)),
        (layers.FFN, (8, 16), (3, 1, 5, 6, 8)),
        (layers.Downsample, (8, 12, dict(type='BN', track_running_stats=False)), (3, 2, 5, 6, 8)),
    ],
    ids=['DepthwiseConv', 'FFN', 'Downsample'],
)
def test_vmap_and_symbolic_trace_take_the_layers_that_are_plain_to_them(
    kind, sizes, shape, training
):
    layer, x = kind(*sizes).train(training), torch.randn(shape)
    expected = torch.stack([layer(each) for each in x])
    accelerate(layer)
    torch.testing.assert_close(torch.func.vmap(layer)(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x[0]), expected[0])


@pytest.mark.parametrize('gradients', [False, True])
def test_forward_mode_goes_through_the_layers_and_is_refused_by_the_attention(gradients):
    def slope(run, x):
        with torch.set_grad_enabled(gradients), forward_ad.dual_level():
            out = run(forward_ad.make_dual(x, torch.ones_like(x)))
            return forward_ad.unpack_dual(out).tangent

    for kind, sizes, shape in (
        (layers.PatchEmbed, (16, dict(type='BN')), (1, 3, 32, 48)),
        (layers.FFN, (8, 16), (1, 5, 6, 8)),
    ):
        layer, x = kind(*sizes).eval(), torch.randn(shape)
        expected = slope(layer, x)
        accelerate(layer)
        torch.testing.assert_close(slope(layer, x), expected)
    _, model = pair()
    with pytest.raises(NotImplementedError, match='forward AD'):
        slope(lambda x: model(x)[3], image())


def test_second_derivatives_are_refused():
    conv = layers.DepthwiseConv(8, 3)
    accelerate(conv)
    x = torch.randn(1, 4, 6, 2, 8, requires_grad=True)
    attend = StageAttention('kernel', 2, 8, 4, axial=True).prepare(x.flatten(-2))
    for run, told in ((lambda x: conv(x[..., 0, :]), 'differentiate twice'),
                      (lambda x: attend(x, x, x), 'rmt.attention_backward')):  # fmt: skip
        (gradient,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=told):
            gradient.square().sum().backward()


# --- modules that others change ------------------------------------------------------------------


def test_dynamically_quantized_layers_are_called():
    def compute(model):
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        names = {type(m).__module__ for m in quantized.modules()}
        assert 'torch.ao.nn.quantized.dynamic.modules.linear' in names
        with torch.no_grad():
            return quantized(image())

    assert_same(compute, tolerance=2e-2)  # a rounding to 8 bits may fall to the other side


@pytest.mark.parametrize(
    'norm',
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
    ],
    ids=lambda norm: f'{norm.__module__.rpartition(".")[2]}.{norm.__name__}',
)
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.filterwarnings('ignore:.*weight_norm.* is deprecated')
def test_weights_may_be_computed_from_others(norm, training):
    def compute(model):
        torch.manual_seed(1)
        for module in list(model.modules()):
            if isinstance(module, PARAMETRIZED):
                norm(module)
                with torch.no_grad():  # of which a change counts
                    next(p for n, p in module.named_parameters() if 'bias' not in n).mul_(1.5)
        features = model.train(training)(image())
        sum(f.square().mean() for f in features).backward()
        return features, [p.grad for p in model.parameters()]

    assert_same(compute, tolerance=1e-3)


def test_forward_that_was_put_into_a_module_is_called():
    def compute(model):
        for module in model.modules():
            if isinstance(module, PARAMETRIZED):
                module.forward = lambda x, own=module.forward: 1.1 * own(x)
        with torch.no_grad():
            return model(image())

    assert_same(compute)


# --- hooks ---------------------------------------------------------------------------------------


def convolutions(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


@pytest.mark.parametrize('everywhere', [False, True], ids=['of each', 'of all modules'])
@pytest.mark.parametrize('training', [False, True])
def test_a_hook_sees_every_convolution_and_its_output_stays(everywhere, training):
    _, model = pair()
    names = {module: name for name, module in convolutions(model).items()}
    kept = {}

    def keep(module, _, out):
        if isinstance(out, torch.Tensor):
            kept[names.get(module, module)] = out, out.detach().clone()

    if everywhere:
        handles = [register_module_forward_hook(keep)]
    else:
        handles = [module.register_forward_hook(keep) for module in model.modules()]
    try:
        with torch.set_grad_enabled(training):
            features = model.train(training)(image())
        if training:
            sum(f.square().mean() for f in features).backward()
    finally:
        [handle.remove() for handle in handles]
    assert len(names) == 22
    assert set(names.values()) <= kept.keys()
    for name, (out, then) in kept.items():
        assert torch.equal(out, then), name


def test_hooks_that_are_gone_leave_no_trace():
    _, model = pair()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(image())
        [m.register_forward_hook(lambda *_: None).remove() for m in copied.modules()]
        assert all(torch.equal(a, b) for a, b in zip(copied(image()), expected, strict=True))
