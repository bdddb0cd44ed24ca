"""torch.compile takes the whole model as one graph, which serves every size."""

from pathlib import Path

import pytest
import torch
from golden import recipe_input, recipe_state_dict
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config as inductor

from backbone import RAVLT, RMT, ManhattanAttention, MAViT

SMALL = dict(
    channels=(8, 8, 16, 16),
    depths=(1, 1, 1, 1),
    heads=(1, 2, 2, 2),
    decay_span=(4, 4, 6, 6),
    ffn_ratio=(2, 2, 2, 2),
    axial=(True, True, False, False),
    layer_scale=(None, None, 0.5, 0.5),
    drop_path=0.0,
)
SMALL_RAVLT = dict(
    channels=(8, 8, 16, 16),
    depths=(1, 1, 1, 1),
    heads=(1, 2, 2, 2),
    ffn_ratio=(2, 2, 2, 2),
    layer_scale=(0.5, 0.5, 0.5, 0.5),
    drop_path=0.0,
)
FAMILIES = {'RMT': (RMT, SMALL), 'RAVLT': (RAVLT, SMALL_RAVLT), 'MAViT': (MAViT, SMALL_RAVLT)}
SIZES = [(64, 96), (96, 64), (75, 118), (128, 160)]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize(
    ('family', 'attention'),
    [
        ('RMT', 'auto'),
        pytest.param('RMT', 'fused', marks=pytest.mark.slow),
        pytest.param('RMT', 'naive', marks=pytest.mark.slow),
        pytest.param('RAVLT', 'auto', marks=pytest.mark.slow),
        pytest.param('MAViT', 'auto', marks=pytest.mark.slow),
    ],
)
def test_one_graph_serves_every_size(family, attention, training):
    torch.manual_seed(0)
    kind, size = FAMILIES[family]
    model = kind(size, out_indices=(0, 2), attention=attention).train(training)
    counter = CompileCounterWithBackend('eager')
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    graphs = []
    for height, width in SIZES:
        x = recipe_input((2, 3, height, width))
        with torch.set_grad_enabled(training):
            features, expected = compiled(x), model(x)
        torch.testing.assert_close(features, expected)
        if training:
            sum(f.square().sum() for f in features).backward()
        graphs.append(counter.frame_count)
    assert graphs == [1] * len(SIZES)


@pytest.mark.parametrize(
    ('family', 'attention'),
    [
        ('RMT', 'auto'),
        pytest.param('RMT', 'fused', marks=pytest.mark.slow),
        ('RAVLT', 'auto'),
        pytest.param('MAViT', 'auto', marks=pytest.mark.slow),
    ],
)
def test_compiled_gradients_equal_eager_ones(family, attention):
    torch.manual_seed(0)
    kind, size = FAMILIES[family]
    model = kind(size, out_indices=(2,), attention=attention)
    model.load_state_dict(recipe_state_dict(model))
    x, gradients = recipe_input((1, 3, 64, 96)), []
    for run in (model, torch.compile(model, backend='aot_eager', fullgraph=True)):
        model.zero_grad()
        model.train()
        (feature,) = run(x)
        # the sum of a norm's squares would not depend on the weights
        (feature * recipe_input(feature.shape)).mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for eager, compiled in zip(*gradients, strict=True):
        assert (compiled - eager).norm() <= 1e-4 * eager.norm() + 1e-6


@pytest.fixture
def quick_inductor(tmp_path, monkeypatch):
    """The default backend with nothing kept from before; g++ does not optimise."""
    cxx = tmp_path / 'g++'  # what it is told from its name
    cxx.write_text('#!/bin/sh\nexec /usr/bin/env g++ "$@" -O0\n')
    cxx.chmod(0o755)
    cache = tmp_path / 'inductor'
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(cache))
    options = {'cpp.cxx': (None, str(cxx)), 'cpp.simdlen': 1, 'compile_threads': 1}
    with inductor.patch({**options, 'cpp_cache_precompile_headers': False}):
        yield cache


def results(run: nn.Module, model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What is made of x and, in training, the gradients of all weights."""
    model.zero_grad()
    with torch.set_grad_enabled(model.training):
        features = run(x)
        if not model.training:
            return [*features]
        sum(f.square().mean() for f in features).backward()
    return [*features, *(p.grad for p in model.parameters())]


def assert_generated_code_equals_eager(
    model: nn.Module, shapes: list, cache: Path, **options
) -> None:
    compiled = torch.compile(model, fullgraph=True, **options)
    for shape in shapes:
        x = recipe_input(shape)
        found, expected = results(compiled, model, x), results(model, model, x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert list(cache.rglob('*.so'))  # generated, compiled


@pytest.mark.slow
@pytest.mark.parametrize('axial', [True, False], ids=['axial', 'whole'])
@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
def test_default_backend_serves_every_size(axial, training, quick_inductor):
    torch.manual_seed(0)
    size = SMALL | dict(axial=(axial, False, False, False))
    model = RMT(size, out_indices=(0,), attention='auto').train(training)
    shapes = [(1, 3, 64, 96), (1, 3, 75, 118), (1, 3, 96, 64)]
    assert_generated_code_equals_eager(model, shapes, quick_inductor, dynamic=True)


@pytest.mark.slow
@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('family', ['RAVLT', 'MAViT'])
def test_default_backend_serves_every_size_of_the_others(family, training, quick_inductor):
    torch.manual_seed(0)
    kind, size = FAMILIES[family]
    model = kind(size, out_indices=(0,)).train(training)
    shapes = [(1, 3, 64, 96), (1, 3, 75, 118), (1, 3, 96, 64)]
    assert_generated_code_equals_eager(model, shapes, quick_inductor, dynamic=True)


@pytest.mark.slow
@pytest.mark.parametrize('axial', [True, False], ids=['axial', 'whole'])
def test_default_backend_takes_the_attention_of_other_networks(axial, quick_inductor):
    torch.manual_seed(0)
    layer = ManhattanAttention(16, 2, axial=axial)
    shapes = [(1, 5, 7, 16), (1, 9, 6, 16)]
    assert_generated_code_equals_eager(layer, shapes, quick_inductor, dynamic=True)
