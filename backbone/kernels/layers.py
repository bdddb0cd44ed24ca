"""The layers on a CPU in float32: same weights, names and values, another forward pass.

Each is its plain layer of :mod:`backbone.layers` wherever its shortcuts do not apply: on a GPU, in
another dtype, under a compiler, a tracer or ``torch.func``, and where somebody watches or has
replaced what they pass by.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.parametrize import is_parametrized

from .. import layers as plain
from ..layers import Attend, times
from . import build
from .convolution import conv_norm, depthwise

SLAB_BYTES = 16 * 2**20  # of the hidden activations that are computed at once


def accelerate(model: nn.Module) -> None:
    """Give every layer in ``model`` its form of this module."""
    for module in model.modules():
        module.__class__ = FAST.get(type(module), type(module))


def applies(x: Tensor, *passed_by: nn.Module) -> bool:
    """Whether a shortcut may be taken: eager float32 on a CPU, a tensor with numbers in it.

    Args:
        passed_by: modules that the shortcut does not call, or whose output it overwrites. A hook on
            one of them, or another module in its place, is a reason to go the plain way.
    """
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.numel() > 0
        and x.device.type == 'cpu'
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled('cpu')
        and not build.escaped()
        and all(is_plain(module) for module in passed_by)
    )


def is_plain(module: nn.Module) -> bool:
    """Whether it computes what the layer built there does, nobody watching, in float32."""
    watched = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _has_any_global_hook()
    )
    # other libraries put a ``forward`` of their own into the module itself
    known = type(module).forward in KNOWN and 'forward' not in vars(module)
    if watched or not known or is_parametrized(module):
        return False
    weight = getattr(module, 'weight', None)
    return weight is None or weight.dtype == torch.float32


def sum_of(x: Tensor, y: Tensor) -> Tensor:
    """``x + y``, in the memory of ``x`` where no gradients are computed.

    With them, adding in place to what is a view copies the gradient several times.
    """
    return x + y if torch.is_grad_enabled() else x.add_(y)


class PatchEmbed(plain.PatchEmbed):
    """Norms of fixed statistics are a part of the convolutions; GELU in place."""

    def forward(self, x: Tensor) -> Tensor:
        if not applies(x, *self.proj):
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last)
        for i, layer in enumerate(self.proj):
            if isinstance(layer, nn.Conv2d):
                x = conv_norm(x, layer, self.proj[i + 1])
            elif isinstance(layer, nn.GELU):
                x = layer(x) if x.requires_grad else torch.ops.aten.gelu_(x)
        return x.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)


class Downsample(plain.Downsample):
    """A norm of fixed statistics is a part of the convolution."""

    def forward(self, x: Tensor) -> Tensor:
        if not applies(x, self.reduction, self.norm):
            return super().forward(x)
        x = conv_norm(x.permute(0, 3, 1, 2), self.reduction, self.norm)  # (B, C', H/2, W/2)
        return x.permute(0, 2, 3, 1)  # -> (B, H/2, W/2, C')


class DepthwiseConv(plain.DepthwiseConv):
    """With gradients of our own."""

    def forward(self, x: Tensor) -> Tensor:
        return depthwise(x, self.conv) if applies(x, self.conv) else super().forward(x)


class Retention(plain.Retention):
    """Adds the local enhancement in place."""

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        if not applies(x, self.lepe, self.lepe.conv):
            return super().forward(x, attend)
        v = self.v_proj(x)
        out = attend(*(self.split(t) for t in (self.q_proj(x), self.k_proj(x), v)))
        return self.out_proj(sum_of(self.lepe(v), out.flatten(-2)))


class GatedAttention(plain.GatedAttention):
    """Adds the local enhancement and multiplies with the gate in place.

    Without gradients, queries, keys and values are dense tensors of their own, and the gate is made
    when they are gone.
    """

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        if not applies(x, self.qkvo, self.lepe, self.lepe.conv) or torch.is_grad_enabled():
            return super().forward(x, attend)
        parts = list(zip(self.qkvo.weight.chunk(4), self.qkvo.bias.chunk(4), strict=True))
        q, k, v = (F.linear(x, *part) for part in parts[:3])
        out = attend(*(self.split(t) for t in (q, k, v)))
        del q, k
        out = self.lepe(v).add_(out.flatten(-2))
        del v
        return self.proj(out.mul_(F.linear(x, *parts[3])))


class FFN(plain.FFN):
    """GELU, convolution and sum in one pass.

    Without gradients, a large image goes through in slabs of rows: its hidden activations, three or
    four times its size, are never whole and stay in the cache.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not applies(x, self.fc1, self.dwconv, self.dwconv.conv, self.fc2):
            return super().forward(x)
        B, H, W, _ = x.shape
        rows = max(8, SLAB_BYTES // max(1, B * W * self.fc1.out_features * x.element_size()))
        if rows >= H or torch.is_grad_enabled():
            return self.fc2(self.hidden(x))
        out = torch.empty_like(x)
        for top in range(0, H, rows):
            first = max(top - 1, 0)  # the convolution needs a row more on each side
            hidden = self.hidden(x[:, first : top + rows + 1])[:, top - first :][:, :rows]
            out[:, top : top + rows] = self.fc2(hidden)
        return out

    def hidden(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, hidden), what ``fc2`` takes."""
        return depthwise(self.fc1(x), self.dwconv.conv, residual=True, activate=True)


class Block(plain.Block):
    """The first sum in the convolution's pass, the others in one with their scales or in place."""

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        norm, mixer, ffn_norm = self.parts()
        own = self.pos, self.pos.conv, mixer, mixer.last, self.ffn, self.ffn.fc2, self.drop_path
        if not applies(x, *own):
            return super().forward(x, attend)
        x = depthwise(x, self.pos.conv, residual=True)
        x = self.add(x, mixer(norm(x), attend), self.gamma_1)
        return self.add(x, self.ffn(ffn_norm(x)), self.gamma_2)

    def add(self, x: Tensor, branch: Tensor, gamma: Tensor | None) -> Tensor:
        """``x + drop_path(gamma * branch)``; may reuse the memory of ``branch``."""
        scale = self.drop_path.scale(branch)
        if gamma is not None:
            scale = gamma if scale is None else times(gamma, scale)
        return sum_of(branch, x) if scale is None else torch.addcmul(x, branch, scale)


class GatedBlock(Block, plain.GatedBlock):
    """The same of another block."""


FAST = {
    plain.PatchEmbed: PatchEmbed,
    plain.Downsample: Downsample,
    plain.DepthwiseConv: DepthwiseConv,
    plain.Retention: Retention,
    plain.GatedAttention: GatedAttention,
    plain.FFN: FFN,
    plain.Block: Block,
    plain.GatedBlock: GatedBlock,
}
KNOWN = {
    kind.forward
    for kind in (
        *FAST.values(),
        *plain.NORMS.values(),
        plain.DropPath,
        nn.Conv2d,
        nn.GELU,
        nn.Linear,
    )
}
"""By what they compute, not by class: mmengine makes BN of SyncBN by a class of its own."""
