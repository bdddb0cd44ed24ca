"""The kernel of the attention at the limits of its shortcuts, on every instruction set."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from released_files import MINI
from torch import Tensor

from backbone import RMT
from backbone.attention import cpu
from backbone.kernels import build

ROWS = 1


def run(q: Tensor, k: Tensor, v: Tensor, rate: float) -> Tensor:
    """Attention in rows, unturned: tensors (1, 1, W, n, d), decay ``2**(rate * distance)``."""
    *_, W, n, d = q.shape
    cos = q.new_ones(1, W, d + -d % cpu.TABLE_STEP)
    rates = q.new_full((n,), rate * torch.tensor(2.0).log().item())
    return cpu.attention(q, k, v, cos, torch.zeros_like(cos), rates, ROWS)[0]


def decays(W: int, rate: float) -> Tensor:
    """The weight of each key for each query without scores, (W, W) float64; rows sum to 1."""
    place = torch.arange(W, dtype=torch.float64)
    weights = torch.exp2(rate * (place[:, None] - place).abs())
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize('bits', [12, 20, 30])
def test_far_keys_count_as_long_as_the_formula_says(bits):
    # the values of near keys are 0: what is left of the first queries is what far keys give
    W, first, far = 480, 24, slice(320, 480)
    rate = -bits / 320  # the nearest of them lies 2^-bits below a query's own key
    v = torch.zeros(1, 1, W, 1, 16)
    v[:, :, far] = torch.rand(1, 1, 160, 1, 16) + 0.5
    zeros, v = torch.zeros_like(v), v.requires_grad_()
    out = run(zeros, zeros, v, rate)
    weights = decays(W, rate)
    expected = weights @ v.detach()[0, 0, :, 0].double()
    assert expected[:first].abs().max() < 2.0 ** (7 - bits)
    torch.testing.assert_close(out[0, 0, :first, 0].double(), expected[:first], rtol=1e-3, atol=0)
    # and what they get back from those queries
    grad = torch.zeros_like(out)
    grad[:, :, :first] = torch.rand(1, 1, first, 1, 16) + 0.5
    (dv,) = torch.autograd.grad(out, v, grad)
    expected = weights.T @ grad[0, 0, :, 0].double()
    torch.testing.assert_close(dv[0, 0, far, 0].double(), expected[far], rtol=1e-3, atol=0)


@pytest.mark.parametrize('bits', [50, 70, 100, 118, 1000])
@pytest.mark.parametrize('d', [8, 16, 32])
def test_scores_far_above_a_querys_own_do_not_overflow(bits, d):
    # the first key is 0: the first query's own score is 0, all its others are ``bits``, in log2
    W, size = 96, 1e5
    q, k = torch.zeros(1, 1, W, 1, d), torch.zeros(1, 1, W, 1, d)
    q[..., 0] = 1
    k[:, :, 1:, :, 0] = bits * d**0.5 * torch.tensor(2.0).log()
    v = size * (torch.rand(1, 1, W, 1, d) + 0.5)
    tensors = [t.requires_grad_() for t in (q, k, v)]
    out = run(*tensors, rate=0.0)
    expected = v[0, 0, 1:, 0].double().mean(0).expand(W, d)
    torch.testing.assert_close(out[0, 0, :, 0].double(), expected, rtol=1e-5, atol=0)
    for gradient in torch.autograd.grad(out, tensors, torch.ones_like(out)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize('mode', [0, 1, 2])
@pytest.mark.parametrize('d', [2, 6, 16, 18, 32, 40])
def test_width_of_a_head_needs_no_whole_vector(mode, d):
    H, W, n = 3, 21, 2
    torch.manual_seed(0)
    tensors = [torch.randn(1, H, W, n, d, requires_grad=True) for _ in range(3)]
    rates = torch.tensor([-0.1, -0.4])
    tables = cpu.tables(d, rates, H, W, True, torch.float32)
    out, _ = cpu.attention(*tensors, *tables, mode)
    if mode:
        with torch.no_grad():
            q, k, v = (t.clone() for t in tensors)
            torch.testing.assert_close(cpu.attention_in_place(q, k, v, *tables, mode), out)
    weight = torch.randn_like(out)
    found = [out, *torch.autograd.grad(out, tensors, weight)]

    doubles = [t.detach().double().requires_grad_() for t in tensors]
    cos, sin = (t[..., :d].double()[:, :, None] for t in tables[:2])
    q, k = (  # a pair (a, b) -> (a cos - b sin, b cos + a sin); sin stands as (-sin, sin)
        t * cos + t.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) * sin for t in doubles[:2]
    )
    rows, cols = torch.arange(H).repeat_interleave(W), torch.arange(W).repeat(H)
    down, across = ((t[:, None] - t).abs() for t in (rows, cols))
    apart = (down > 0) if mode == 1 else (across > 0) if mode == 2 else torch.tensor(False)
    places = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, doubles[2]))  # (1, n, L, d)
    q, k, v = places
    scores = q @ k.transpose(-1, -2) * d**-0.5
    scores = scores + rates.double()[:, None, None] * (down + across)
    expected = (scores.masked_fill(apart, -torch.inf).softmax(-1) @ v).transpose(1, 2)
    expected = expected.unflatten(1, (H, W))
    wanted = [expected, *torch.autograd.grad(expected, doubles, weight.double())]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def test_the_first_call_of_a_process_may_be_the_operators(tmp_path):
    # a copy of an unpickled model, and the bare operator: nobody has asked for the kernels before
    arch = MINI | dict(channels=(12,) * 4, heads=(2,) * 4)  # 6 channels a head
    model = RMT(arch, out_indices=(0, 2), attention='kernel').eval()
    image, q = torch.randn(1, 3, 32, 48), torch.randn(3, 1, 5, 7, 2, 18)
    tables = cpu.tables(18, torch.tensor([-0.1, -0.4]), 5, 7, True, torch.float32)
    torch.save([model, image, q, tables], tmp_path / 'given.pt')
    code = """if True:
        import copy, sys, torch
        import backbone.attention.cpu
        model, image, q, tables = torch.load(sys.argv[1], weights_only=False)
        out = [torch.ops.rmt.attention(*q, *tables, mode) for mode in range(3)]
        with torch.no_grad():
            torch.save([out, copy.deepcopy(model)(image)], sys.argv[2])
    """
    files = tmp_path / 'given.pt', tmp_path / 'out.pt'
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, '-c', code, *files], cwd=root, check=True)
    out, features = torch.load(files[1])
    for mode in range(3):
        torch.testing.assert_close(out[mode], cpu.attention(*q, *tables, mode))
    with torch.no_grad():
        torch.testing.assert_close(features, model(image))


@pytest.fixture
def taken(monkeypatch):
    """The bytes of every tensor that the kernels are handed."""
    sizes, address = [], build._address

    def counted(name, place, tensor):
        sizes.append(0 if tensor is None else tensor.untyped_storage().nbytes())
        return address(name, place, tensor)

    monkeypatch.setattr(build, '_address', counted)
    return sizes


@pytest.mark.parametrize('mode', [0, 1, 2])
def test_memory_grows_with_the_tokens_and_stays_far_below_the_scores(mode, taken):
    total = {}
    for side in (24, 48):
        q = torch.randn(1, side, side, 2, 16, requires_grad=True)
        tables = cpu.tables(16, torch.tensor([-0.1, -0.4]), side, side, True, torch.float32)
        taken.clear()
        cpu.attention(q, q, q, *tables, mode)[0].sum().backward()
        total[side] = sum(taken)
    assert total[48] < 4.2 * total[24]
    assert mode or max(taken) < 4 * 2 * 48**4 / 4
