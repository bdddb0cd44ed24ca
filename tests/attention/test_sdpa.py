"""What ``fused`` gives a GPU's kernel: one mask, aligned, in the queries' dtype. Run on a CPU."""

import pytest
import torch
from test_attention import SPAN, error, formula, inputs
from torch.nn.attention import _cur_sdpa_kernel_backends

from backbone.attention import sdpa
from backbone.attention.positions import complex_turns, decay_rates

SHAPES = [(2, 5, 7, 3, 8), (1, 1, 9, 2, 16), (2, 9, 6, 1, 32), (1, 1, 1, 1, 8)]


def attend(kind, q, k, v):
    _, H, W, n, d = q.shape
    masks = sdpa.masks(decay_rates(n, SPAN), H, W, kind == 'axial', q.dtype)
    return sdpa.attend(q, k, v, (complex_turns(d, H, W, q.device), *masks), kind == 'axial')


@pytest.mark.parametrize('kind', ['whole', 'axial'])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('limit', [2**30, 500], ids=['one mask', 'chunks'])
def test_masks_of_a_gpu_give_the_formula_in_both_directions(kind, shape, limit, monkeypatch):
    monkeypatch.setattr(sdpa, 'MASK_BYTES', limit)
    tensors = [t.requires_grad_() for t in inputs(shape)]
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    out, expected = attend(kind, *tensors), formula(kind, *doubles)
    assert error(out.detach(), expected.detach()) < 1e-5
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(out, tensors, weight)
    for gradient, reference in zip(
        gradients, torch.autograd.grad(expected, doubles, weight.double()), strict=True
    ):
        assert error(gradient, reference) < 1e-5


@pytest.mark.parametrize('kind', ['whole', 'axial'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_pytorch_takes_the_masks_as_they_are(kind, dtype, monkeypatch):
    given, plain = [], sdpa.F.scaled_dot_product_attention

    def attention(*tensors, attn_mask):
        given.append(attn_mask)
        return plain(*tensors, attn_mask=attn_mask)

    monkeypatch.setattr(sdpa.F, 'scaled_dot_product_attention', attention)
    attend(kind, *(t.to(dtype) for t in inputs((2, 5, 7, 3, 8))))
    assert len(given) == (1 if kind == 'whole' else 2)
    for mask in given:
        assert mask.dtype == dtype
        assert mask.stride(-1) == 1
        assert all(stride % 8 == 0 for stride in mask.stride()[:-1])
        assert mask.stride(0) == 0  # one mask for every image or line


def test_chunks_make_no_mask_above_the_limit(monkeypatch):
    monkeypatch.setattr(sdpa, 'MASK_BYTES', 3 * 2 * 7 * 40 * 4)  # two rows of queries, three heads
    made, plain = [], sdpa.mask_of_rows
    monkeypatch.setattr(sdpa, 'mask_of_rows', lambda *a: made.append(plain(*a)) or made[-1])
    tensors = [t.requires_grad_() for t in inputs((1, 5, 7, 3, 8))]
    attend('whole', *tensors).sum().backward()
    assert [mask.shape[2] for mask in made] == [14, 14, 7, 7, 14, 14]  # again for the gradients
    assert all(m.untyped_storage().nbytes() <= sdpa.MASK_BYTES for m in made)


def test_gpu_takes_the_memory_efficient_kernel_or_the_formula_and_plans_nothing(monkeypatch):
    preferred, seen, plain = sdpa._efficient, [], sdpa.F.scaled_dot_product_attention

    def attention(*tensors, **mask):
        seen.append({backend.name for backend in _cur_sdpa_kernel_backends()})
        return plain(*tensors, **mask)

    monkeypatch.setattr(sdpa, '_efficient', lambda _: preferred(torch.device('cuda')))
    monkeypatch.setattr(sdpa.F, 'scaled_dot_product_attention', attention)
    attend('whole', *inputs((2, 5, 7, 3, 8)))
    assert seen == [{'EFFICIENT_ATTENTION', 'MATH'}]
