"""The Triton kernels, in Triton's interpreter where there is no GPU: numbers, bounds, the operator.

That they equal the formula and the released features as every implementation does is proven by the
slow tests of ``test_attention.py`` and ``test_rmt.py``.
"""

import shutil

import golden
import pytest
import torch
from test_attention import KINDS, SPAN, error, formula, inputs
from torch._dynamo.testing import CompileCounterWithBackend

from backbone import RMT
from backbone.attention import IMPLEMENTATIONS, StageAttention, decay_rates, triton

HERE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
why_not = triton.supports(HERE, torch.float32, 16)
runs = pytest.mark.skipif(bool(why_not), reason=f'triton on {HERE}: {why_not}')
every_kind = pytest.mark.parametrize('kind', KINDS)
GUARD = 4096
MINI = dict(
    channels=(16, 16, 32, 32),
    depths=(1, 1, 1, 1),
    heads=(1, 1, 2, 1),
    decay_span=(4, 4, 6, 6),
    ffn_ratio=(2, 2, 2, 2),
    axial=(True, False, True, False),
    drop_path=0.0,
)


def guarded(shape, dtype):
    """A tensor of NaN, and the buffer with NaN on both sides that it lies in."""
    size = torch.Size(shape).numel()
    buffer = torch.full((size + 2 * GUARD,), torch.nan, dtype=dtype, device=HERE)
    return buffer[GUARD : GUARD + size].view(shape), buffer


def between_nan(t):
    return guarded(t.shape, t.dtype)[0].copy_(t)


@pytest.fixture
def buffers(monkeypatch):
    """The buffers of the operators' results, each filled with NaN and with NaN on both sides."""
    made = []

    def empty(like, shape, dtype=None):
        inside, buffer = guarded(shape, dtype or like.dtype)
        made.append(buffer)
        return inside

    monkeypatch.setattr(triton, '_empty', empty)
    return made


def tables_of(shape, kind):
    _, H, W, n, d = shape
    return triton.tables(d, decay_rates(n, SPAN, HERE), H, W, KINDS[kind], torch.float32)


# --- numbers -------------------------------------------------------------------------------------


@runs
@every_kind
@pytest.mark.parametrize(
    ('shape', 'dtype', 'limit', 'scale'),
    [
        ((1, 1, 1, 1, 16), torch.float32, 1e-5, 1.0),
        ((1, 1, 7, 1, 32), torch.float32, 1e-5, 1.0),
        ((2, 17, 3, 1, 16), torch.float32, 1e-5, 1.0),
        ((1, 1, 66, 1, 64), torch.float32, 1e-5, 1.0),  # more than a tile
        ((1, 5, 77, 1, 16), torch.float16, 2e-3, 1.0),
        ((1, 2, 3, 2, 128), torch.float16, 2e-3, 1.0),
        ((1, 3, 2, 3, 20), torch.float16, 2e-3, 1.0),  # heads that are no power of two
        ((1, 3, 5, 1, 32), torch.bfloat16, 3e-2, 1.0),  # the interpreter rounds by cutting off
        ((1, 2, 17, 1, 16), torch.float32, 1e-3, 12.0),  # scores of several hundred
    ],
    ids=str,
)
def test_formula_to_rounding_and_nothing_outside_read_or_written(
    kind, shape, dtype, limit, scale, buffers
):
    q, k, v = inputs(shape, scale, device=HERE)
    grad, _, _ = inputs(shape, seed=1, device=HERE)
    q, k, v, grad = (between_nan(t.to(dtype)) for t in (q, k, v, grad))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    tables = tuple(map(between_nan, tables_of(shape, kind)))
    out = triton.attend(*leaves, tables, KINDS[kind])
    found = out, *torch.autograd.grad(out, leaves, grad)
    exact = [t.detach().cpu().double().requires_grad_() for t in leaves]
    expected = formula(kind, *exact)
    wanted = expected, *torch.autograd.grad(expected, exact, grad.cpu().double())
    for ours, theirs in zip(found, wanted, strict=True):
        if theirs.norm() > 0:
            assert error(ours, theirs) < limit
        else:  # a single key weighs 1 whatever its score
            assert ours.abs().max() < limit
    assert len(buffers) >= 8
    for buffer in buffers:
        assert buffer[:GUARD].isnan().all()
        assert buffer[-GUARD:].isnan().all()


@runs
@every_kind
def test_views_of_one_tensor_and_an_expanded_gradient_equal_the_formula(kind):
    B, H, W, n, d = 1, 3, 4, 2, 16
    joint = torch.randn(B, H, W, n, 3, d, device=HERE, requires_grad=True)
    q, k, v = joint.unbind(-2)
    out = triton.attend(q, k, v, tables_of((B, H, W, n, d), kind), KINDS[kind])
    exact = joint.detach().cpu().double().requires_grad_()
    expected = formula(kind, *exact.unbind(-2))
    assert error(out, expected) < 1e-5
    pairs = (out, joint), (expected, exact)
    found, wanted = (torch.autograd.grad(o.sum(), t)[0] for o, t in pairs)
    assert error(found, wanted) < 1e-5


@pytest.mark.skipif(HERE.type != 'cpu', reason='takes 9 GB of memory, here of an empty file')
@runs
@every_kind
def test_images_further_apart_than_32_bits_count_equal_the_formula(kind, tmp_path):
    """What is cut to 32 bits lands before the tensors, on zeros of the file: nothing crashes."""
    shape, apart = (3, 1, 2, 1, 16), 2**30 + 8  # no multiple of 16: counted one by one
    memory = torch.from_file(str(tmp_path / 'sparse'), True, 2**32 + 2**10, dtype=torch.float16)
    given = [*inputs(shape), inputs(shape, seed=1)[0]]
    placed = [
        memory.as_strided(shape, (apart, 32, 16, 16, 1), 2**31 + 32 * i).copy_(t)
        for i, t in enumerate(given)
    ]
    *qkv, grad = placed
    leaves = [t.requires_grad_() for t in qkv]
    out = triton.attend(*leaves, tables_of(shape, kind), KINDS[kind])
    exact = [t.detach().double().contiguous().requires_grad_() for t in leaves]
    expected = formula(kind, *exact)
    pairs = (out, leaves, grad), (expected, exact, grad.double())
    found, wanted = ((o, *torch.autograd.grad(o, ts, g)) for o, ts, g in pairs)
    for ours, theirs in zip(found, wanted, strict=True):
        assert error(ours, theirs) < 2e-3


@runs
@every_kind
def test_tiles_of_every_generation_of_gpus_equal_the_formula(kind, monkeypatch):
    from backbone.kernels import triton_launch, triton_tiles

    shape = (1, 5, 19, 1, 16)
    leaves = [t.half().requires_grad_() for t in inputs(shape, device=HERE)]
    exact = [t.detach().cpu().double().requires_grad_() for t in leaves]
    expected = formula(kind, *exact)
    wanted = expected, *torch.autograd.grad(expected.sum(), exact)
    asked = []

    def constants(*given):
        asked.append(given[-1])
        return triton_tiles.constants(*given)

    monkeypatch.setattr(triton_launch, 'constants', constants)
    for capability in triton_tiles.TILES:
        monkeypatch.setattr(triton_launch, 'capability_of', lambda _, found=capability: found)
        out = triton.attend(*leaves, tables_of(shape, kind), KINDS[kind])
        found = out, *torch.autograd.grad(out.sum(), leaves)
        for ours, theirs in zip(found, wanted, strict=True):
            assert error(ours, theirs) < 2e-3
    assert set(asked) == set(triton_tiles.TILES)


@runs
@every_kind
def test_same_inputs_give_the_same_bits(kind):
    shape = (1, 3, 7, 1, 16)
    results = []
    for _ in range(2):
        leaves = [t.requires_grad_() for t in inputs(shape, device=HERE)]
        out = triton.attend(*leaves, tables_of(shape, kind), KINDS[kind])
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@runs
@pytest.mark.parametrize('with_cp', [False, True])
def test_gradients_of_a_model_equal_those_of_the_formula(with_cp):
    x = golden.recipe_input((2, 3, 17, 23)).to(HERE)
    results = []
    for name in ('naive', 'triton'):
        model = RMT(MINI, attention=name, with_cp=with_cp and name == 'triton').to(HERE).train()
        model.load_state_dict(golden.recipe_state_dict(model))
        loss = sum(f.square().mean() for f in model(x))
        results.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    for ours, theirs in zip(*reversed(results), strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-6


# --- the operator --------------------------------------------------------------------------------


@runs
@every_kind
def test_operator_is_well_formed(kind):
    shape = (1, 2, 3, 1, 16)
    arguments = *inputs(shape, device=HERE), *tables_of(shape, kind), KINDS[kind]
    needing = [t.requires_grad_() for t in arguments[:3]]
    torch.library.opcheck(triton.attention, (*needing, *arguments[3:]))


@runs
@every_kind
def test_one_graph_serves_every_size_and_gives_the_same_gradients(kind):
    stage = StageAttention('triton', 1, 16, SPAN, KINDS[kind])
    counter = CompileCounterWithBackend('aot_eager')

    def attend(q, k, v):
        return stage.prepare(q.flatten(-2))(q, k, v)

    torch._dynamo.reset()
    compiled = torch.compile(attend, backend=counter, fullgraph=True, dynamic=True)
    for shape in ((2, 3, 5, 1, 16), (2, 4, 2, 1, 16)):
        results = []
        for run in (attend, compiled):
            leaves = [t.requires_grad_() for t in inputs(shape, device=HERE)]
            out = run(*leaves)
            results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
        torch.testing.assert_close(*results)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@runs
def test_autocast_computes_in_its_dtype():
    model = RMT(MINI, out_indices=(0,), attention='triton').to(HERE).eval()
    x = golden.recipe_input((1, 3, 16, 24)).to(HERE)
    with torch.no_grad(), torch.autocast(HERE.type, torch.bfloat16):
        half = model(x)[0]
    with torch.no_grad():
        assert error(half, model(x)[0]) < 0.05


@runs
def test_export_takes_another_implementation():
    model = RMT(MINI, out_indices=(0,), attention='triton').to(HERE).eval()
    with pytest.raises(Exception, match="cannot be exported; build with attention='fused'"):
        torch.export.export(model, (torch.zeros(1, 3, 32, 32, device=HERE),))


@runs
@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (dict(q=torch.zeros(3, 4, 2, 16)), 'q: .* wanted'),
        (dict(k=torch.zeros(1, 3, 5, 2, 16)), r'k: \(1, 3, 4, 2, 16\) wanted'),
        (dict(v=torch.zeros(1, 3, 4, 2, 16).half()), r'v is torch.float16 .* q is torch.float32'),
        (dict(turns=torch.zeros(11, 16)), r'turns: \(12, 16\) wanted'),
        (dict(rates=torch.zeros(2).double()), 'rates: contiguous float32'),
        (dict(places=torch.zeros(2, 32)), r'places: \(2, 64\) wanted'),
        (dict(places=torch.zeros(64, 2).T), 'places: contiguous float32'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_tensors_that_do_not_fit_never_reach_the_kernels(change, told):
    shape = (1, 3, 4, 2, 16)
    named = dict(zip(('q', 'k', 'v'), inputs(shape), strict=True))
    named |= dict(zip(('turns', 'rates', 'places'), tables_of(shape, 'axial'), strict=True))
    with pytest.raises(ValueError, match=told):
        triton.attention(**{n: t.to(HERE) for n, t in (named | change).items()}, axial=True)


# --- where it runs -------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """As on a machine with two GPUs, of capability 8.0 and 7.5, and all that Triton needs."""
    (tmp_path / 'Python.h').touch()
    monkeypatch.setattr(triton.importlib.util, 'find_spec', lambda name: object())
    monkeypatch.setattr(triton.shutil, 'which', lambda name: name)
    monkeypatch.setattr(triton.sysconfig, 'get_path', lambda name: str(tmp_path))
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda i: ((8, 0), (7, 5))[i])
    return monkeypatch


def supports(device='cuda:0', dtype=torch.float16, head_dim=32):
    return triton.supports(torch.device(device), dtype, head_dim)


def test_gpu_with_all_that_it_needs_is_supported(gpu):
    for dtype in triton.DTYPES:
        for head_dim in (16, 20, 32, 64, 128):
            assert supports(dtype=dtype, head_dim=head_dim) == ''


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        (dict(head_dim=130), 'a head has 130 channels, it takes an even number up to 128'),
        (dict(head_dim=15), 'a head has 15 channels'),
        (dict(dtype=torch.float64), 'takes float32, float16 and bfloat16, not float64'),
        (dict(device='cuda:1'), 'cuda:1 has compute capability 7.5, it takes 8.0'),
        (dict(device='cuda'), 'cuda has compute capability 7.5'),
        (dict(device='cuda:2'), 'there is no cuda:2'),
        (dict(device='xpu'), 'runs on CUDA GPUs, not on xpu'),
    ],
    ids=str,
)
def test_what_it_does_not_take_is_told(arguments, told, gpu):
    assert supports(**arguments).startswith(told)


def test_what_is_missing_is_told(gpu, tmp_path):
    (tmp_path / 'Python.h').unlink()
    assert supports() == "needs Python's C headers (Python.h)"
    gpu.setattr(shutil, 'which', lambda name: None)
    gpu.delenv('CC', raising=False)
    assert supports() == 'needs a C compiler: gcc, clang, or what CC names'
    gpu.setenv('CC', 'no-such-compiler')
    assert supports() == 'needs a C compiler: no-such-compiler (CC) was not found'
    gpu.setattr(torch.version, 'hip', '6.0')
    assert supports() == 'compiles for CUDA, this is ROCm'
    gpu.setattr(triton.importlib.util, 'find_spec', lambda name: None)
    assert supports() == 'the package triton is not installed'


def test_cpu_takes_it_in_the_interpreter_alone(gpu):
    gpu.setenv('TRITON_INTERPRET', '1')
    assert supports('cpu') == ''
    gpu.delenv('TRITON_INTERPRET')
    assert supports('cpu').startswith('runs on CUDA GPUs, not on cpu (in Triton')


def test_it_is_listed():
    assert IMPLEMENTATIONS['triton'] is triton
