"""The attention of RAVLT and MAViT as one operator of the graph, and what that becomes in ONNX.

As :mod:`.attention` does it for RMT, and for the same reason. Without decay there is nothing that
a stage has to make but its angles.
"""

from collections.abc import Callable
from functools import partial

import torch
from support.exported.runtimes import need
from torch import Tensor

from backbone import RAVLT, MAViT, mavit, ravlt
from backbone.attention.positions import row_column_cos_sin
from backbone.attention.rotary import SOFTMAX, RotaryAttention

WAYS = {
    'softmax': SOFTMAX['fused'],
    'rala': RAVLT.linear['fused'],
    'mala': MAViT.linear['fused'],
}


@torch.library.custom_op('rmt::rotary', mutates_args=())
def rotary(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, scale: float, way: str
) -> Tensor:
    """Attention of q k v (1, H, W, n, d) as ``WAYS`` has it.

    Args:
        cos, sin: of the angles, (H, W, 1, d / 2).
        scale: of the scores, by which the ways of PyTorch multiply themselves.
    """
    return WAYS[way](q, k, v, (cos, sin)).contiguous()


@rotary.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, scale: float, way: str) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


class ExportedRotary:
    """A stage's attention, as :class:`backbone.attention.rotary.RotaryAttention`, in a graph."""

    def __init__(self, like: RotaryAttention) -> None:
        self.width = like.head_dim
        self.way = next(name for name, way in WAYS.items() if way is like.ways['fused'])

    def prepare(self, x: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        cos, sin = row_column_cos_sin(self.width, *x.shape[1:3], x.device)
        scale = self.width**-0.5
        return partial(torch.ops.rmt.rotary, cos=cos, sin=sin, scale=scale, way=self.way)


def translation() -> dict[object, Callable]:
    """For ``torch.onnx.export(custom_translation_table=...)``."""
    need('onnxscript')
    from onnxscript import opset18 as op

    def ints(*values: int):
        return op.Constant(value_ints=list(values))

    def number(value: float):
        return op.Constant(value_float=value)

    def turned(x, cos, sin):
        """Neighbours are pairs."""
        most = ints(2**31)
        a = op.Slice(x, ints(0), most, ints(-1), ints(2))
        b = op.Slice(x, ints(1), most, ints(-1), ints(2))
        first = op.Sub(op.Mul(a, cos), op.Mul(b, sin))
        second = op.Add(op.Mul(b, cos), op.Mul(a, sin))
        pairs = op.Concat(op.Unsqueeze(first, ints(-1)), op.Unsqueeze(second, ints(-1)), axis=-1)
        return op.Reshape(pairs, op.Shape(x))

    def feature(x):
        return op.Add(op.Elu(x), number(1.0))

    def mean(x):
        """Over the places: (n, L, d) -> (n, 1, d)."""
        return op.ReduceMean(x, ints(1), keepdims=1)

    def across(x):
        """(n, L, d) -> (n, d, L)."""
        return op.Transpose(x, perm=[0, 2, 1])

    def softmax(q, k, v, turned_q, turned_k, scale: float):
        scores = op.MatMul(op.Mul(turned_q, number(scale)), across(turned_k))
        return op.MatMul(op.Softmax(scores, axis=-1), v)

    def rala(q, k, v, turned_q, turned_k, scale: float):
        weights = op.MatMul(k, op.Mul(across(mean(q)), number(scale)))
        weights = op.Softmax(weights, axis=1)  # (n, L, 1)
        sums = op.MatMul(across(op.Mul(turned_k, weights)), v)  # (n, d, d)
        total = op.MatMul(q, op.MatMul(across(k), weights))
        return op.Div(op.MatMul(turned_q, sums), op.Add(total, number(ravlt.EPS)))

    def mala(q, k, v, turned_q, turned_k, scale: float):
        places = op.Cast(op.Shape(v, start=1, end=2), to=1)
        sums = op.MatMul(across(turned_k), v)  # (n, d, d)
        sums = op.Mul(sums, op.Div(number(scale), places))
        z = op.MatMul(q, op.Mul(across(mean(k)), number(scale)))  # (n, L, 1)
        factor = op.Add(number(1.0), op.Div(number(1.0), op.Add(z, number(mavit.EPS))))
        return op.Sub(op.Mul(op.MatMul(turned_q, sums), factor), op.Mul(z, mean(v)))

    def onnx_rotary(q, k, v, cos, sin, scale: float, way: str):
        flat = op.Concat(ints(-1), op.Shape(v, start=3), axis=0)

        def by_head(x):
            """(1, H, W, n, d) -> (n, L, d)."""
            return op.Transpose(op.Reshape(x, flat), perm=[1, 0, 2])

        if way != 'softmax':
            q, k = feature(q), feature(k)
        turned_q, turned_k = (by_head(turned(x, cos, sin)) for x in (q, k))
        compute = dict(softmax=softmax, rala=rala, mala=mala)[way]
        out = compute(*(by_head(x) for x in (q, k, v)), turned_q, turned_k, scale)
        return op.Reshape(op.Transpose(out, perm=[1, 0, 2]), op.Shape(v))

    return {torch.ops.rmt.rotary.default: onnx_rotary}
