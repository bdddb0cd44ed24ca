"""Memory does not grow with the square of the image: counted in bytes allocated, not measured."""

import pytest
import torch
from allocations import Allocations
from families import image
from test_rmt import MINI_WHOLE, build

from backbone.attention import StageAttention


def allocations(kind, name, H, W, training, n=2, d=8):
    tensors = [torch.randn(1, H, W, n, d, requires_grad=training) for _ in range(3)]
    attend = StageAttention(name, n, d, 4, kind == 'axial').prepare(tensors[0].flatten(-2))
    tables = attend.keywords['tables']
    with Allocations() as counted:
        out = attend(*tensors)
        if training:
            out.sum().backward()
    return counted.sizes, sum(t.untyped_storage().nbytes() for t in tables)


LEAN = ['kernel', 'auto', 'fused']


@pytest.mark.parametrize('training', [False, True], ids=['inference', 'training'])
@pytest.mark.parametrize('kind', ['whole', 'axial'])
@pytest.mark.parametrize('name', LEAN)
def test_no_tensor_is_as_large_as_the_scores(kind, name, training):
    n, H, W = 2, 24, 40
    scores = 4 * n * H * W * (H * W if kind == 'whole' else min(H, W))
    sizes, tables = allocations(kind, name, H, W, training, n)
    assert max([*sizes, tables]) < scores
    sizes, tables = allocations(kind, 'naive', H, W, training, n)  # the count does find them
    assert max(sizes) >= scores


@pytest.mark.parametrize('training', [False, True], ids=['inference', 'training'])
@pytest.mark.parametrize('kind', ['whole', 'axial'])
def test_memory_of_the_kernel_grows_with_the_tokens(kind, training):
    total = {side: sum(allocations(kind, 'kernel', side, side, training)[0]) for side in (16, 32)}
    tables = {side: allocations(kind, 'kernel', side, side, training)[1] for side in (16, 32)}
    assert total[32] <= 4 * total[16]
    assert tables[32] <= 4 * tables[16]


@pytest.mark.parametrize('name', LEAN)
def test_whole_model_allocates_less_than_half_of_the_formula(name):
    total = {}
    for attention in (name, 'naive'):
        model = build(MINI_WHOLE, attention=attention).eval()
        with torch.no_grad(), Allocations() as counted:
            model(image(320, 320))
        total[attention] = sum(counted.sizes)
    assert total[name] < 0.5 * total['naive']
