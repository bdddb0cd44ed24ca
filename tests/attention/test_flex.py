"""FlexAttention is compiled as often as a training needs it, also past PyTorch's own limit."""

import functools

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from backbone.attention import flex


@pytest.fixture
def counter(monkeypatch):
    """Counts what is compiled; in the place of FlexAttention is a product."""
    counter = CompileCounter()
    compiled = functools.partial(torch.compile, backend=counter)
    monkeypatch.setattr(torch, 'compile', compiled)
    monkeypatch.setattr('torch.nn.attention.flex_attention.flex_attention', lambda x: x * x)
    torch._dynamo.reset()
    flex._flex_attention.cache_clear()
    yield counter
    flex._flex_attention.cache_clear()
    torch._dynamo.reset()


def test_it_is_compiled_more_often_than_pytorch_does_by_itself(counter):
    limit = torch._dynamo.config.recompile_limit
    attend = flex._flex_attention(True)
    for dimensions in range(1, limit + 4):
        attend(torch.ones([2] * dimensions))
    assert counter.frame_count == limit + 3
    assert torch._dynamo.config.recompile_limit == limit
