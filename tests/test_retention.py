"""Every implementation of the attention equals the formula, and tables are made once a size."""

import copy
import pickle
import threading

import pytest
import torch
from oracle import manhattan_attention

from backbone import RMT, kernel, retention

CPU = torch.device('cpu')
KINDS = {'whole': (False, retention.WHOLE), 'axial': (True, retention.AXIAL)}
NAMES = [(kind, name) for kind, (_, names) in KINDS.items() for name in names]
# PyTorch's FlexAttention has no gradients on a CPU
TRAINABLE = [(kind, name) for kind, name in NAMES if name != 'flex']
SPAN = 4


def inputs(shape, scale=1.0, seed=0):
    """q k v (B, H, W, n, d); scale acts on queries and keys."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
    return q * scale, k * scale, v


def attend(kind, name, q, k, v):
    axial, _ = KINDS[kind]
    implementation = retention.get_implementation(name, axial)
    _, H, W, n, d = q.shape
    tables = retention.stage_tables(implementation, d, n, SPAN, H, W, CPU)
    return implementation.attend(q, k, v, *tables)


def formula(kind, q, k, v):
    n, d = q.shape[-2:]
    flat = (q.flatten(-2), k.flatten(-2) * d**-0.5, v.flatten(-2))
    return manhattan_attention(*flat, n, SPAN, KINDS[kind][0]).unflatten(-1, (n, d))


def error(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-6))


def compare(kind, name, shape, scale=1.0, tolerance=1e-4):
    trainable = name != 'flex'
    tensors = [t.requires_grad_(trainable) for t in inputs(shape, scale)]
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    out, expected = attend(kind, name, *tensors), formula(kind, *doubles)
    assert out.shape == torch.Size(shape)
    assert error(out, expected) < tolerance
    if not trainable:
        return
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(out, tensors, weight)
    references = torch.autograd.grad(expected, doubles, weight.double())
    for gradient, reference in zip(gradients, references, strict=True):
        assert error(gradient, reference) < tolerance


@pytest.mark.parametrize(('kind', 'name'), NAMES)
def test_without_gradients_the_result_is_the_same_and_the_inputs_stay(kind, name):
    tensors = inputs((2, 5, 13, 3, 8))
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


@pytest.mark.parametrize(('kind', 'name'), NAMES)
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
def test_features_and_gradients_equal_the_float64_formula(kind, name, shape):
    compare(kind, name, shape)


@pytest.mark.parametrize(('kind', 'name'), NAMES)
def test_large_scores_stay_exact(kind, name):
    # scores of several hundred: a softmax without its maximum taken off would overflow
    compare(kind, name, (1, 6, 17, 2, 16), scale=12.0, tolerance=1e-3)


@pytest.mark.parametrize('kind', KINDS)
def test_kernel_leaves_out_only_what_cannot_matter(kind):
    # long lines, steep decay: most keys of a query are far beyond the cutoff
    compare(kind, 'kernel', (1, 2, 400, 1, 8) if kind == 'axial' else (1, 2, 250, 1, 8))


@pytest.mark.parametrize(('kind', 'name'), NAMES)
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision_stays_within_its_rounding(kind, name, dtype, tolerance):
    q, k, v = (t.to(dtype) for t in inputs((1, 40, 30, 2, 16)))
    out = attend(kind, name, q, k, v)
    assert out.dtype == dtype
    assert error(out, formula(kind, q.double(), k.double(), v.double())) < tolerance


@pytest.mark.parametrize(('kind', 'name'), NAMES)
def test_a_batch_is_its_images_one_by_one(kind, name):
    q, k, v = inputs((3, 6, 7, 2, 8))
    batch = attend(kind, name, q, k, v)
    for i in range(3):
        alone = attend(kind, name, *(t[i : i + 1] for t in (q, k, v)))
        torch.testing.assert_close(batch[i : i + 1], alone)


@pytest.mark.parametrize(('kind', 'name'), NAMES)
def test_layout_of_the_inputs_does_not_matter(kind, name):
    q, k, v = inputs((2, 6, 7, 2, 8))
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


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match='naive, fused, kernel, flex, auto'):
        retention.get_implementation('fastest', axial=True)


# --- the kernel's absence ------------------------------------------------------------------------


@pytest.fixture
def no_kernel(monkeypatch, tmp_path):
    """As on a machine without a compiler: ``compiler(path)`` names what is there instead."""

    def compiler(path):
        monkeypatch.setenv('CXX', path)
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
        monkeypatch.setattr(kernel, '_ready', False)
        kernel._library.cache_clear()

    yield compiler
    kernel._library.cache_clear()


@pytest.mark.parametrize('broken', ['no-such-compiler', 'false'])
def test_without_a_compiler_auto_computes_without_the_kernel(no_kernel, broken):
    no_kernel(broken)
    q, k, v = inputs((1, 4, 6, 2, 8))
    with pytest.raises(RuntimeError, match='needs a C\\+\\+ compiler'):
        retention.get_implementation('kernel', axial=False)
    out = attend('whole', 'auto', q, k, v)
    assert torch.equal(out, attend('whole', 'fused', q, k, v))


def test_kernel_is_compiled_once_and_kept(no_kernel, tmp_path):
    no_kernel('g++')
    assert kernel.available()
    (file,) = (tmp_path / 'rmt-downstream').iterdir()  # and nothing half written beside it
    made = file.stat().st_mtime_ns
    kernel._library.cache_clear()
    assert kernel._library() is not None
    assert file.stat().st_mtime_ns == made


# --- the cache -----------------------------------------------------------------------------------


@pytest.fixture
def cache(monkeypatch):
    monkeypatch.setattr(retention, '_cache', type(retention._cache)())
    return retention._cache


def stage_tables(name='fused', H=4, W=6, axial=True):
    return retention.stage_tables(retention.get_implementation(name, axial), 8, 2, SPAN, H, W, CPU)


def test_tables_of_a_size_are_made_once(cache):
    first, second, other = stage_tables(), stage_tables(), stage_tables(W=7)
    assert all(a is b for a, b in zip(first, second, strict=True))
    assert other[0] is not first[0]
    assert len(cache) == 2


def test_cache_is_bounded_in_number_and_drops_the_oldest(cache):
    first = stage_tables()
    for W in range(7, 7 + 2 * retention.CACHED_TABLES):
        stage_tables(W=W)
        assert stage_tables()[0] is first[0]  # used all along: stays
    assert len(cache) == retention.CACHED_TABLES


def test_cache_does_not_keep_large_tables(cache, monkeypatch):
    monkeypatch.setattr(retention, 'CACHED_BYTES', 1000)
    assert stage_tables('naive', 20, 20, axial=False)[2].numel() == 2 * 400 * 400
    assert not cache


def test_tables_made_in_inference_mode_serve_training(cache):
    q, k, v = (t.requires_grad_() for t in inputs((1, 4, 6, 2, 8)))
    for kind, name in TRAINABLE:
        with torch.inference_mode():
            attend(kind, name, *inputs((1, 4, 6, 2, 8)))
        attend(kind, name, q, k, v).sum().backward()


def test_cache_serves_threads_at_once(cache):
    expected = {W: attend('axial', 'auto', *inputs((1, 4, W, 2, 8))) for W in range(3, 30)}
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
    assert len(cache) == retention.CACHED_TABLES


@pytest.mark.parametrize('name', retention.AXIAL)
def test_model_copies_and_pickles_with_every_implementation(name):
    sizes = dict(channels=(8, 8, 8, 8), depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
    rest = dict(decay_span=(4,) * 4, ffn_ratio=(2,) * 4, axial=(True, True, False, False))
    model = RMT(sizes | rest, out_indices=(0, 2), attention=name).eval()
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        expected = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(other(x), expected)
