"""The plain layers are the paper's formulas."""

import pytest
import torch

from backbone.attention import StageAttention
from backbone.layers import Block, DropPath


def attend(device):
    x = torch.zeros(1, 4, 6, 8, device=device)
    return StageAttention('auto', 2, 4, 4, axial=False).prepare(x)


@pytest.mark.parametrize('gamma', [None, 0.3])
@pytest.mark.parametrize('drop_path', [0.0, 0.5])
def test_block_equals_its_formula(gamma, drop_path, device):
    torch.manual_seed(0)
    block = Block(8, 2, 2.0, drop_path, gamma).train().to(device)
    x = torch.randn(4, 4, 6, 8, device=device)
    torch.manual_seed(1)
    out = block(x, attend(device))
    torch.manual_seed(1)
    y = x + block.pos.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    for branch in (
        lambda y: block.retention(block.retention_layer_norm(y), attend(device)),
        lambda y: block.ffn(block.final_layer_norm(y)),
    ):
        kept = block.drop_path.scale(y)
        y = y + branch(y) * (gamma or 1.0) * (1.0 if kept is None else kept)
    torch.testing.assert_close(out, y)


def test_drop_path_is_its_scale():
    layer, x = DropPath(0.5).train(), torch.randn(64, 2, 2, 3)
    torch.manual_seed(0)
    out = layer(x)
    torch.manual_seed(0)
    torch.testing.assert_close(out, layer.scale(x) * x)
    assert torch.equal(layer.eval()(x), x)
