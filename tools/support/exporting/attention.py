"""Manhattan attention as one operator of the graph, and what that becomes in ONNX.

As one operator it is exported in a moment, where its many changes of shape take torch.export a
minute. The decay is made once a stage, in plain PyTorch.
"""

from collections.abc import Callable
from functools import partial

import torch
from support.exported.runtimes import need
from support.exporting.rotary import ExportedRotary
from torch import Tensor

from backbone.attention import StageAttention, reference
from backbone.attention.positions import decay_rates
from backbone.attention.rotary import RotaryAttention
from backbone.layers import Retention
from backbone.network import Network


@torch.library.custom_op('rmt::attend', mutates_args=())
def attend(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, decay: list[Tensor]
) -> Tensor:
    """Attention of q k v (1, H, W, n, d), prepared by :func:`pairs_to_halves`, by the formula.

    Args:
        cos, sin: of the angles, (H, W, 1, d / 2).
        decay: in rows (n, W, W) and in columns (n, H, H), or between all places (n, L, L).
    """
    q, k = (_halves_to_pairs(t) for t in (q, k))
    tables = (cos, sin, *decay)
    k = k * k.shape[-1] ** 0.5  # the formula divides
    return reference.attend(q, k, v, tables, axial=len(decay) > 1).contiguous()


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, decay: list[Tensor]) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


class ExportedAttention:
    """A stage's attention, as :class:`backbone.attention.StageAttention`, in a graph."""

    def __init__(self, like: StageAttention) -> None:
        self.like = like

    def prepare(self, x: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        own = self.like
        rates = decay_rates(own.heads, own.span)
        H, W = x.shape[1:3]
        cos, sin, *decay = reference.tables(own.head_dim, rates, H, W, own.axial, x.dtype)
        return partial(torch.ops.rmt.attend, cos=cos, sin=sin, decay=decay)


def for_export(backbone: Network) -> None:
    """Give a backbone attention that can be exported; RMT's weights change with it."""
    for stage in backbone.layers:
        rotary = isinstance(stage.attention, RotaryAttention)
        stage.attention = (ExportedRotary if rotary else ExportedAttention)(stage.attention)
    for module in backbone.modules():
        if isinstance(module, Retention):
            pairs_to_halves(module)


def pairs_to_halves(retention: Retention) -> None:
    """Let queries and keys come with the first of all pairs before the second of all, keys scaled.

    Pairs of channels are turned; lying apart they are two blocks, which is quicker to take apart.
    No score changes, for queries and keys change alike.
    """
    width = retention.q_proj.out_features // retention.heads
    order = torch.arange(width).view(-1, 2).T.reshape(-1)
    order = torch.cat([order + width * i for i in range(retention.heads)])
    for layer, scale in ((retention.q_proj, 1.0), (retention.k_proj, width**-0.5)):
        for weight in (layer.weight, layer.bias):
            weight.data = weight.data[order] * scale


def _halves_to_pairs(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def translation() -> dict[object, Callable]:
    """For ``torch.onnx.export(custom_translation_table=...)``."""
    need('onnxscript')
    from onnxscript import opset18 as op

    def ints(*values: int):
        return op.Constant(value_ints=list(values))

    def turned(x, cos, sin):
        a, b = op.Split(x, axis=-1, num_outputs=2)
        first = op.Sub(op.Mul(a, cos), op.Mul(b, sin))
        return op.Concat(first, op.Add(op.Mul(b, cos), op.Mul(a, sin)), axis=-1)

    def attention(q, k, v, decay):
        """q v (..., length, d), k (..., d, length)"""
        return op.MatMul(op.Softmax(op.Add(op.MatMul(q, k), decay), axis=-1), v)

    def onnx_attend(q, k, v, cos, sin, decay):
        shape = op.Shape(v)
        q, k, v = (op.Squeeze(t, ints(0)) for t in (q, k, v))  # (H, W, n, d)
        q, k = turned(q, cos, sin), turned(k, cos, sin)
        if len(decay) > 1:
            rows, columns = decay
            v = op.Transpose(v, perm=[0, 2, 1, 3])  # (H, n, W, d)
            line = op.Transpose(q, perm=[0, 2, 1, 3]), op.Transpose(k, perm=[0, 2, 3, 1])
            v = attention(*line, v, rows)
            v = op.Transpose(v, perm=[2, 1, 0, 3])  # (W, n, H, d)
            line = op.Transpose(q, perm=[1, 2, 0, 3]), op.Transpose(k, perm=[1, 2, 3, 0])
            v = attention(*line, v, columns)
            return op.Reshape(op.Transpose(v, perm=[2, 0, 1, 3]), shape)
        flat = op.Concat(ints(1, -1), op.Shape(v, start=2), axis=0)
        q, k, v = (op.Reshape(t, flat) for t in (q, k, v))  # (1, L, n, d)
        q, v = op.Transpose(q, perm=[0, 2, 1, 3]), op.Transpose(v, perm=[0, 2, 1, 3])
        out = attention(q, op.Transpose(k, perm=[0, 2, 3, 1]), v, decay[0])  # (1, n, L, d)
        return op.Reshape(op.Transpose(out, perm=[0, 2, 1, 3]), shape)

    return {torch.ops.rmt.attend.default: onnx_attend}
