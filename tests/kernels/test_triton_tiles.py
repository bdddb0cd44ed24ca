"""Which tiles a GPU gets. What they need of it: ``tests/tools/test_compile_kernels.py``."""

import pytest
import torch

pytest.importorskip('triton')
from backbone.kernels import triton_tiles

HALF = 'forward', torch.float16, 'ieee', 32


@pytest.mark.parametrize(
    ('found', 'like'),
    [((8, 0), 80), ((8, 9), 80), ((9, 0), 80), ((10, 3), 100), ((12, 1), 120), ((13, 0), 120)],
)
def test_gpu_gets_the_tiles_of_its_generation(found, like, monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch.cuda, 'get_device_capability', lambda device: asked.append(device) or found
    )
    triton_tiles.capability_of.cache_clear()
    device = torch.device('cuda:1')
    try:
        for _ in range(2):
            capability = triton_tiles.capability_of(device)
    finally:
        triton_tiles.capability_of.cache_clear()
    assert asked == [device]  # once, and of that device
    assert triton_tiles.tile(*HALF, capability) == triton_tiles.tile(*HALF, like)


def test_gpu_with_tensor_memory_gets_other_tiles_than_those_without():
    assert triton_tiles.tile(*HALF, 100) != triton_tiles.tile(*HALF, 90)
    assert triton_tiles.tile(*HALF, 120) == triton_tiles.tile(*HALF, 90)


@pytest.mark.parametrize(('allowed', 'precision'), [('highest', 'ieee'), ('high', 'tf32')])
def test_tf32_is_taken_only_where_pytorch_is_allowed_it(allowed, precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        assert triton_tiles.precision_of(torch.float32, interpreted=False) == precision
        assert triton_tiles.precision_of(torch.float16, interpreted=False) == 'ieee'
    finally:
        torch.set_float32_matmul_precision(before)
