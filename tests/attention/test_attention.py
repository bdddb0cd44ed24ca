"""Every implementation of the attention equals the formula, and tables are made once a size."""

import copy
import math
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from oracle import manhattan_attention

from backbone import RMT, attention
from backbone.attention import IMPLEMENTATIONS, NAMES, StageAttention, cpu, triton
from backbone.attention.positions import decay_rates, rotary_angles

CPU = torch.device('cpu')
KINDS = {'whole': False, 'axial': True}
SLOW = {'triton'} if not torch.cuda.is_available() else set()
"""What takes minutes here, in an interpreter; tests/attention/test_triton.py has less of it."""
PAIRS = [
    pytest.param(kind, name, marks=[pytest.mark.slow] if name in SLOW else [])
    for kind in KINDS
    for name in NAMES
]
# PyTorch's FlexAttention has no gradients on a CPU
TRAINABLE = [(kind, name) for kind in KINDS for name in NAMES if name not in ('flex', *SLOW)]
SPAN = 4
MINI = dict(
    channels=(8, 8, 8, 8),
    depths=(1, 1, 1, 1),
    heads=(1, 1, 1, 1),
    decay_span=(4,) * 4,
    ffn_ratio=(2,) * 4,
    axial=(True, True, False, False),
)
every_pair = pytest.mark.parametrize(('kind', 'name'), PAIRS)


def inputs(shape, scale=1.0, seed=0, device=CPU):
    """q k v (B, H, W, n, d); scale acts on queries and keys."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(shape, generator=generator).to(device) for _ in range(3))
    return q * scale, k * scale, v


def stage(name, shape, axial):
    *_, n, d = shape
    return StageAttention(name, n, d, SPAN, axial)


def skip_unless_here(name, device, dtype, head_dim):
    if name in IMPLEMENTATIONS:
        reason = IMPLEMENTATIONS[name].supports(device, dtype, head_dim)
        if reason:
            pytest.skip(f'{name} on {device}: {reason}')


def attend(kind, name, q, k, v):
    skip_unless_here(name, q.device, q.dtype, q.shape[-1])
    return stage(name, q.shape, KINDS[kind]).prepare(q.flatten(-2))(q, k, v)


def formula(kind, q, k, v):
    n, d = q.shape[-2:]
    flat = (q.flatten(-2), k.flatten(-2) * d**-0.5, v.flatten(-2))
    return manhattan_attention(*flat, n, SPAN, KINDS[kind]).unflatten(-1, (n, d))


def error(a, b):
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).norm() / b.norm().clamp_min(1e-6))


def compare(kind, name, shape, device, scale=1.0, tolerance=1e-4):
    trainable = name != 'flex' or device.type != 'cpu'
    tensors = [t.requires_grad_(trainable) for t in inputs(shape, scale, device=device)]
    doubles = [t.detach().cpu().double().requires_grad_() for t in tensors]
    out, expected = attend(kind, name, *tensors), formula(kind, *doubles)
    assert out.shape == torch.Size(shape)
    assert error(out, expected) < tolerance
    if not trainable:
        return
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(out, tensors, weight.to(device))
    references = torch.autograd.grad(expected, doubles, weight.double())
    for gradient, reference in zip(gradients, references, strict=True):
        assert error(gradient, reference) < tolerance


@every_pair
def test_without_gradients_the_result_is_the_same_and_the_inputs_stay(kind, name, device):
    tensors = inputs((2, 5, 13, 3, 8), device=device)
    kept = [t.clone() for t in tensors]
    expected = attend(kind, name, *tensors)
    with torch.no_grad():
        torch.testing.assert_close(attend(kind, name, *tensors), expected)
    for tensor, before in zip(tensors, kept, strict=True):
        assert torch.equal(tensor, before)


def test_long_columns_without_gradients_equal_the_formula():
    q, k, v = inputs(
        (1, 800, 1, 1, 8)
    )  # long and few: elsewhere their queries would be cut in parts
    with torch.no_grad():
        assert error(attend('axial', 'kernel', q, k, v), formula('axial', q, k, v)) < 1e-4


@every_pair
@pytest.mark.parametrize(
    'shape',
    [
        (2, 5, 7, 3, 8),
        (1, 13, 9, 2, 16),
        (2, 9, 26, 1, 32),
        (1, 1, 11, 2, 6),  # a width of no whole vector
        (1, 3, 101, 1, 4),  # rows of more than one segment
        (1, 4, 5, 1, 40),
    ],
    ids=str,
)
def test_features_and_gradients_equal_the_float64_formula(kind, name, shape, device):
    compare(kind, name, shape, device)


@every_pair
def test_large_scores_stay_exact(kind, name, device):
    # scores of several hundred: a softmax without its maximum taken off would overflow
    compare(kind, name, (1, 6, 17, 2, 16), device, scale=12.0, tolerance=1e-3)


@pytest.mark.parametrize('kind', KINDS)
def test_kernel_leaves_out_only_what_cannot_matter(kind):
    # long lines, steep decay: most keys of a query are far beyond the cutoff
    shape = (1, 2, 400, 1, 8) if kind == 'axial' else (1, 2, 250, 1, 8)
    compare(kind, 'kernel', shape, CPU)


@every_pair
@pytest.mark.parametrize(
    ('dtype', 'tolerance'),
    [(torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float64, 1e-5)],
)
def test_every_precision_stays_within_its_rounding(kind, name, dtype, tolerance, device):
    q, k, v = (t.to(dtype) for t in inputs((1, 40, 30, 2, 16), device=device))
    out = attend(kind, name, q, k, v)
    assert out.dtype == dtype
    assert error(out, formula(kind, *(t.cpu().double() for t in (q, k, v)))) < tolerance


@every_pair
def test_a_batch_is_its_images_one_by_one(kind, name, device):
    q, k, v = inputs((3, 6, 7, 2, 8), device=device)
    batch = attend(kind, name, q, k, v)
    for i in range(3):
        alone = attend(kind, name, *(t[i : i + 1] for t in (q, k, v)))
        torch.testing.assert_close(batch[i : i + 1], alone)


@every_pair
def test_no_image_gives_nothing_in_both_directions(kind, name, device):
    tensors = [t.requires_grad_() for t in inputs((0, 6, 7, 2, 8), device=device)]
    out = attend(kind, name, *tensors)
    assert out.shape == (0, 6, 7, 2, 8)
    gradients = torch.autograd.grad(out.sum(), tensors)
    assert [g.shape for g in gradients] == 3 * [out.shape]


@every_pair
def test_layout_of_the_inputs_does_not_matter(kind, name, device):
    q, k, v = inputs((2, 6, 7, 2, 8), device=device)
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    torch.testing.assert_close(attend(kind, name, *turned), attend(kind, name, q, k, v))


@pytest.mark.parametrize('kind', KINDS)
def test_kernel_gives_the_same_with_any_number_of_threads(kind):
    q, k, v = inputs((1, 24, 30, 2, 16))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(attend(kind, 'kernel', q, k, v))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


# --- the choice ----------------------------------------------------------------------------------


def test_unknown_name_lists_the_choices(monkeypatch):
    for module in IMPLEMENTATIONS.values():
        monkeypatch.setattr(module, 'supports', lambda *_: '')
    with pytest.raises(ValueError, match=', '.join(NAMES)):
        stage('fastest', (2, 8), axial=True)


def test_unknown_name_tells_why_a_choice_cannot_run_here(no_kernels):
    no_kernels('no-such-compiler')
    with pytest.raises(ValueError, match=r'fused, kernel \(not here: needs a C\+\+ .*no-such-comp'):
        stage('fastest', (2, 8), axial=True)


@pytest.mark.parametrize('name', IMPLEMENTATIONS)
def test_name_that_cannot_run_raises_with_the_reason(name, monkeypatch):
    monkeypatch.setattr(IMPLEMENTATIONS[name], 'supports', lambda *_: 'the moon is full')
    with pytest.raises(
        RuntimeError, match=f"'{name}' cannot run here: the moon is full; use 'auto'"
    ):
        stage(name, (2, 8), axial=True).prepare(torch.zeros(1, 4, 6, 16))


def test_kernel_does_not_take_tensors_of_another_device():
    with pytest.raises(RuntimeError, match="'kernel' cannot run here: runs on a CPU, not on meta"):
        stage('kernel', (2, 8), axial=True).prepare(torch.zeros(1, 4, 6, 16, device='meta'))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_auto_takes_the_kernel_on_a_cpu(dtype):
    assert attention.FASTEST['cpu'][0] == 'kernel'
    assert attention.choose('auto', CPU, dtype, 16) == 'kernel'


def test_auto_computes_by_the_kernel_on_a_cpu(monkeypatch):
    called, call = [], cpu.build.call
    monkeypatch.setattr(cpu.build, 'call', lambda *a: called.append(a[0]) or call(*a))
    attend('whole', 'auto', *inputs((1, 4, 6, 2, 8)))
    assert called == ['rmt_forward']


@pytest.mark.parametrize('kind', ['cpu', 'cuda', 'xpu', 'mps'])
def test_auto_takes_the_first_of_the_fastest_that_can_and_never_the_formula(kind, monkeypatch):
    # who can run is played: no device of the kind is needed
    order = attention.FASTEST.get(kind, ('fused',))
    assert order[-1] == 'fused'
    assert 'naive' not in order
    cannot = set()
    monkeypatch.setattr(attention.self_check, 'problem', lambda *_: '')
    for name, module in IMPLEMENTATIONS.items():
        monkeypatch.setattr(
            module, 'supports', lambda *_, name=name: 'not today' if name in cannot else ''
        )
    for best in order:
        assert attention.choose('auto', torch.device(kind, 0), torch.float16, 16) == best
        cannot.add(best)


def test_auto_takes_triton_on_a_gpu_that_can_and_has_shown_it(monkeypatch):
    capabilities = {0: (8, 0), 1: (7, 5), 2: (9, 0)}
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, 'get_device_capability', capabilities.get)
    monkeypatch.setattr(triton.importlib.util, 'find_spec', lambda name: object())
    monkeypatch.setattr(
        attention.self_check,
        'problem',
        lambda _, device, *__: 'its numbers are wrong' if device.index == 2 else '',
    )

    def chosen(index, head_dim=32):
        return attention.choose('auto', torch.device('cuda', index), torch.float16, head_dim)

    assert chosen(0) == 'triton'
    assert chosen(1) == 'fused'  # too old
    assert chosen(2) == 'fused'  # fails its self-check
    assert chosen(0, head_dim=7) == 'fused'
    by_name = attention.choose('triton', torch.device('cuda', 2), torch.float16, 32)
    assert by_name == 'triton'


@pytest.fixture
def lines(monkeypatch):
    """What the choice logs."""
    told = []
    monkeypatch.setattr(attention, '_told', set())
    monkeypatch.setattr(attention, 'print_log', lambda text, *_, **__: told.append(text))
    return told


def test_choice_is_logged_once_a_device(lines):
    model = RMT(MINI, out_indices=(0, 2)).eval()
    for _ in range(2):
        model(torch.randn(1, 3, 32, 48))
    assert lines == ['RMT attention on cpu: kernel']


def test_choice_tells_why_a_better_one_was_passed_over(lines, no_kernels):
    no_kernels('no-such-compiler')
    RMT(MINI, out_indices=(0, 2)).eval()(torch.randn(1, 3, 32, 48))
    (line,) = lines
    assert line.startswith('RMT attention on cpu: fused (kernel: needs a C++ compiler')


def test_building_a_model_compiles_nothing(no_kernels, tmp_path):
    no_kernels('g++')
    RMT(MINI, out_indices=(0, 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('broken', ['no-such-compiler', 'false'])
def test_without_a_compiler_auto_computes_without_the_kernel(no_kernels, broken):
    no_kernels(broken)
    q, k, v = inputs((1, 4, 6, 2, 8))
    with pytest.raises(RuntimeError, match='needs a C\\+\\+ compiler'):
        stage('kernel', q.shape, axial=False)
    out = attend('whole', 'auto', q, k, v)
    assert torch.equal(out, attend('whole', 'fused', q, k, v))


# --- what goes into the kernel -------------------------------------------------------------------


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (dict(q=torch.zeros(1, 4, 6, 16)), 'q: .* wanted'),
        (dict(k=torch.zeros(1, 4, 5, 2, 8)), r'k: \(1, 4, 6, 2, 8\) wanted, not \(1, 4, 5, 2, 8\)'),
        (dict(v=torch.zeros(1, 4, 6, 2, 4)), 'v: .* wanted'),
        (dict(v=torch.zeros(1, 4, 6, 2, 8, dtype=torch.float64)), 'argument 2 is torch.float64'),
        (dict(cos=torch.zeros(4, 6, 8)), r'cos: \(4, 6, 16\) wanted'),
        (dict(sin=torch.zeros(4, 5, 16)), 'sin: .* wanted'),
        (dict(cos=torch.zeros(4, 16, 6).transpose(1, 2)), 'argument 3 .* with strides'),
        (dict(rates=torch.zeros(3)), r'rates: \(2,\) wanted, not \(3,\)'),
        (dict(mode=3), 'mode 3: choose from'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_tensors_that_do_not_fit_never_reach_the_kernel(change, told, monkeypatch):
    q, k, v = inputs((1, 4, 6, 2, 8))
    cos, sin, rates = cpu.tables(8, torch.zeros(2), 4, 6, True, torch.float32)
    sound = dict(q=q, k=k, v=v, cos=cos, sin=sin, rates=rates, mode=1)
    cpu.attention(**sound)
    with pytest.raises(ValueError, match=told):
        cpu.attention(**sound | change)
    with pytest.raises(ValueError, match=told):
        cpu.attention_in_place(**sound | change)


def test_kernel_runs_in_a_process_that_unpickled_the_model(tmp_path):
    model = RMT(MINI | dict(heads=(4,) * 4), out_indices=(0, 2), attention='kernel').eval()  # d 2
    x = torch.randn(1, 3, 32, 48)
    torch.save(dict(model=model, x=x), tmp_path / 'model.pt')
    code = """if True:
        import sys, torch
        kept = torch.load(sys.argv[1], weights_only=False)
        with torch.no_grad():
            torch.save(kept['model'](kept['x']), sys.argv[2])
    """
    out = tmp_path / 'out.pt'
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, '-c', code, tmp_path / 'model.pt', out], cwd=root, check=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(out), model(x))


# --- what they know of places --------------------------------------------------------------------


def test_decay_and_angles_are_the_numbers_of_the_paper():
    # log(1 - 2^(-2 - 4 m / 4)), m = 0..3, and 10000^(-j / 3), j = 0..3, worked out by hand
    rates = [-0.2876820724517809, -0.1335313926245226, -0.0645385211375711, -0.0317486983145803]
    torch.testing.assert_close(decay_rates(4, 4), torch.tensor(rates), rtol=1e-6, atol=0)
    rates = [-0.2876820724517809, -0.0925411993846204, -0.0317486983145803, -0.0111100319371975]
    torch.testing.assert_close(decay_rates(4, 6), torch.tensor(rates), rtol=1e-5, atol=0)
    angles = [1.0, 0.0464158883361278, 0.0021544346900319, 0.0001]
    torch.testing.assert_close(rotary_angles(8), torch.tensor(angles), rtol=1e-6, atol=0)


@every_pair
def test_attention_is_the_formula_written_out_in_plain_numbers(kind, name, device):
    H, W, n, d = 2, 3, 2, 4
    q, k, v = inputs((1, H, W, n, d), device=device)
    out = attend(kind, name, q, k, v)[0].flatten(0, 1).tolist()  # [place][head][channel]
    q, k, v = (t[0].flatten(0, 1).tolist() for t in (q, k, v))
    turned = [[[turn(x[p][m], p, d) for m in range(n)] for p in range(H * W)] for x in (q, k)]
    for m in range(n):
        rate = math.log(1 - 2 ** (-2 - SPAN * m / n))
        values = [v[p][m] for p in range(H * W)]
        for inside in ('row', 'column') if kind == 'axial' else ('all',):
            values = [weigh(*turned, values, p, m, rate, W, inside) for p in range(H * W)]
        for p in range(H * W):
            assert out[p][m] == pytest.approx(values[p], abs=2e-6)


def turn(x, place, d):
    out = []
    for j in range(d // 2):
        angle = place * 10000 ** -(j / (d // 2 - 1))
        a, b = x[2 * j], x[2 * j + 1]
        out += [
            a * math.cos(angle) - b * math.sin(angle),
            b * math.cos(angle) + a * math.sin(angle),
        ]
    return out


def weigh(q, k, values, place, head, rate, W, inside):
    row, column = divmod(place, W)
    total, result = 0.0, [0.0] * len(values[0])
    for other in range(len(values)):
        rows, columns = abs(other // W - row), abs(other % W - column)
        if (inside == 'row' and rows) or (inside == 'column' and columns):
            continue
        score = sum(a * b for a, b in zip(q[place][head], k[other][head], strict=True))
        weight = math.exp(score / len(values[0]) ** 0.5 + rate * (rows + columns))
        total += weight
        result = [r + weight * x for r, x in zip(result, values[other], strict=True)]
    return [r / total for r in result]


# --- the cache -----------------------------------------------------------------------------------


@pytest.fixture
def cache(monkeypatch):
    monkeypatch.setattr(attention, '_cache', type(attention._cache)())
    return attention._cache


def grid_tables(name='fused', H=4, W=6, axial=True):
    return attention.grid_tables(name, 8, 2, SPAN, H, W, axial, CPU, torch.float32)


def test_tables_of_a_size_are_made_once(cache):
    first, second, other = grid_tables(), grid_tables(), grid_tables(W=7)
    assert all(a is b for a, b in zip(first, second, strict=True))
    assert other[0] is not first[0]
    assert len(cache) == 2


def kept_bytes(cache):
    return sum(t.untyped_storage().nbytes() for tables in cache.values() for t in tables)


def test_cache_is_bounded_in_bytes_and_drops_what_was_longest_unused(cache, monkeypatch):
    first = grid_tables()
    monkeypatch.setattr(attention, 'CACHED_BYTES', 20 * kept_bytes(cache))
    for W in range(7, 17):
        other = grid_tables(W=W)
        assert grid_tables(W=W)[0] is other[0]  # the newest is kept
        assert grid_tables()[0] is first[0]  # used all along: stays
        assert kept_bytes(cache) <= attention.CACHED_BYTES
    assert 2 < len(cache) < 11


def test_cache_has_room_for_the_largest_images_and_is_no_larger_than_said(cache):
    assert attention.CACHED_BYTES == 256 * 2**20
    with torch.device('meta'):
        model = RMT('tiny', attention='fused')
    for i, stage in enumerate(model.layers):
        stage.attention.prepare(torch.zeros(1, 1, 1, 1).expand(1, 200 >> i, 334 >> i, 1))
    assert len(cache) == 4


def test_cache_does_not_keep_large_tables(cache, monkeypatch):
    small = grid_tables()
    monkeypatch.setattr(attention, 'CACHED_BYTES', 8 * kept_bytes(cache))
    assert grid_tables('naive', 20, 20, axial=False)[2].numel() == 2 * 400 * 400
    assert grid_tables()[0] is small[0]
    assert len(cache) == 1


@pytest.mark.parametrize('name', IMPLEMENTATIONS)
@pytest.mark.parametrize('axial', [False, True])
def test_tables_are_float32_whatever_the_default_dtype(cache, name, axial):
    expected = grid_tables(name, axial=axial)
    for dtype in (torch.float64, torch.bfloat16):
        cache.clear()
        torch.set_default_dtype(dtype)
        try:
            tables = grid_tables(name, axial=axial)
        finally:
            torch.set_default_dtype(torch.float32)
        for table, same in zip(tables, expected, strict=True):
            assert table.dtype == same.dtype
            assert torch.equal(table, same)


def test_tables_made_in_inference_mode_serve_training(cache):
    tensors = [t.requires_grad_() for t in inputs((1, 4, 6, 2, 8))]
    for kind, name in TRAINABLE:
        gradients = []
        for grad_mode in (torch.enable_grad, torch.inference_mode):
            cache.clear()
            with grad_mode():
                attend(kind, name, *inputs((1, 4, 6, 2, 8)))
            out = attend(kind, name, *tensors)
            gradients.append(torch.autograd.grad(out.square().sum(), tensors))
        torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_cache_serves_threads_at_once(cache, monkeypatch):
    expected = {W: attend('axial', 'auto', *inputs((1, 4, W, 2, 8))) for W in range(3, 30)}
    monkeypatch.setattr(attention, 'CACHED_BYTES', kept_bytes(cache) // 2)
    cache.clear()
    wrong = []

    def work():
        for W, reference in expected.items():
            if not torch.equal(attend('axial', 'auto', *inputs((1, 4, W, 2, 8))), reference):
                wrong.append(W)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    full = attention.CACHED_BYTES
    assert 0.8 * full < kept_bytes(cache) <= full


@pytest.mark.parametrize('name', NAMES)
def test_model_copies_and_pickles_with_every_implementation(name):
    skip_unless_here(name, CPU, torch.float32, 8)
    model = RMT(MINI, out_indices=(0, 2), attention=name).eval()
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        expected = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(other(x), expected)
