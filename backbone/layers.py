"""The layers of all families in the order the data flows: stem, attention with its surroundings,
FFN, block, downsample, stage.

B batch, H W the stage's grid, C channels, n heads, d = C / n channels a head. Tensors are
(B, H, W, C) inside the network; convolutions see the same memory as (B, C, H, W) in channels-last
format, so that no layout change copies.
Module names are those of RMT's released files (see :mod:`backbone.weights.layout`); what the names
of the others' are here says :mod:`backbone.ravlt`. What is quicker on a CPU stands in
:mod:`backbone.kernels.layers`.
"""

from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .kernels.compiled import even_sides

NORMS = {'BN': nn.BatchNorm2d, 'SyncBN': nn.SyncBatchNorm}

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The attention of a stage: q k v (B, H, W, n, d) -> (B, H, W, n, d)."""


class GridAttention(Protocol):
    """The attention of one stage, which all its blocks share. Has no weights."""

    def prepare(self, x: Tensor) -> Attend:
        """That for the grid, device and dtype of x (B, H, W, C)."""


def build_norm(norm_cfg: dict, channels: int) -> nn.Module:
    """The norm behind a strided convolution.

    ``dict(type='BN' | 'SyncBN', requires_grad=True, **kwargs)``.
    """
    kwargs = dict(norm_cfg)
    kind, requires_grad = kwargs.pop('type', None), kwargs.pop('requires_grad', True)
    if kind not in NORMS:
        raise ValueError(f'norm_cfg type {kind!r} is unknown; choose from {", ".join(NORMS)}')
    norm = NORMS[kind](channels, **kwargs)
    norm.requires_grad_(requires_grad)
    return norm


def init_linear(module: nn.Module) -> None:
    """Give a linear layer the weights that training begins with; leave any other as it is."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class PatchEmbed(nn.Module):
    """Stem: four 3x3 convolutions to stride 4, (B, 3, H, W) -> (B, ceil(H/4), ceil(W/4), C).

    Args:
        strides: of the convolutions; two are 2. The width is C / 2 up to the second of those, which
            makes it C.
    """

    def __init__(
        self, channels: int, norm_cfg: dict, strides: tuple[int, ...] = (2, 1, 2, 1)
    ) -> None:
        super().__init__()
        layers, width = [], 3
        for i, stride in enumerate(strides):
            out = channels if strides[: i + 1].count(2) == 2 else channels // 2
            layers += [nn.Conv2d(width, out, 3, stride, padding=1), build_norm(norm_cfg, out)]
            layers.append(nn.GELU())
            width = out
        self.proj = nn.Sequential(*layers[:-1])  # no activation at the end

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if torch.compiler.is_compiling():
            for layer in self.proj:
                x = layer(even_sides(x) if getattr(layer, 'stride', None) == (2, 2) else x)
        else:
            x = self.proj(x)
        return x.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)


class DepthwiseConv(nn.Module):
    """Depthwise k x k convolution with bias on (B, H, W, C)."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.permute(0, 3, 1, 2))  # (B, C, H, W)
        return x.permute(0, 2, 3, 1)  # -> (B, H, W, C)


class Retention(nn.Module):
    """Manhattan self-attention with a local enhancement: ``out(attention(q, k, v) + DW5x5(v))``."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.lepe = DepthwiseConv(channels, 5)
        self.out_proj = nn.Linear(channels, channels)

    @property
    def last(self) -> nn.Module:
        """The layer that gives the result."""
        return self.out_proj

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        v = self.v_proj(x)
        out = attend(*(self.split(t) for t in (self.q_proj(x), self.k_proj(x), v)))
        return self.out_proj(out.flatten(-2) + self.lepe(v))

    def split(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, n, d)."""
        return x.unflatten(-1, (self.heads, -1))


class GatedAttention(nn.Module):
    """Attention with a local enhancement and a gate: ``proj((attention(q, k, v) + DW5x5(v)) * o)``.

    Of RAVLT and MAViT. The gate ``o`` is linear, as q, k and v are.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkvo = nn.Linear(channels, 4 * channels)
        self.lepe = DepthwiseConv(channels, 5)
        self.proj = nn.Linear(channels, channels)

    @property
    def last(self) -> nn.Module:
        """The layer that gives the result."""
        return self.proj

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        q, k, v, o = self.qkvo(x).chunk(4, dim=-1)
        out = attend(*(self.split(t) for t in (q, k, v)))
        return self.proj((out.flatten(-2) + self.lepe(v)) * o)

    def split(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, n, d)."""
        return x.unflatten(-1, (self.heads, -1))


class FFN(nn.Module):
    """Feed-forward network around a convolution: ``fc2(h + DW3x3(h)), h = GELU(fc1 x)``."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = DepthwiseConv(hidden, 3)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        hidden = F.gelu(self.fc1(x))
        return self.fc2(hidden + self.dwconv(hidden))


class DropPath(nn.Module):
    """Stochastic depth: drops a whole residual branch of a sample with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return times(self.scale(x), x)

    def scale(self, x: Tensor) -> Tensor | None:
        """What the branch ``x`` of each sample is multiplied with, (B, 1, ...); None is 1."""
        if not self.training or self.rate == 0:
            return None
        keep = 1 - self.rate
        return x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(keep) / keep

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


def times(scale: Tensor | None, x: Tensor) -> Tensor:
    """``scale * x``; None is 1."""
    return x if scale is None else scale * x


class Block(nn.Module):
    """``x += DW3x3(x); x += gamma_1 * Ret(LN(x)); x += gamma_2 * FFN(LN(x))`` (section 3).

    Ret is the retention, or what another family has in its place.
    """

    mixer: ClassVar[type[nn.Module]] = Retention
    names: ClassVar[tuple[str, str, str]] = (
        'retention_layer_norm',
        'retention',
        'final_layer_norm',
    )
    """Of the first norm, the mixer and the second norm."""

    def __init__(
        self,
        channels: int,
        heads: int,
        ffn_ratio: float,
        drop_path: float,
        layer_scale: float | None,
    ) -> None:
        super().__init__()
        norm, mixer, ffn_norm = self.names
        self.pos = DepthwiseConv(channels, 3)
        self.add_module(norm, nn.LayerNorm(channels, eps=1e-6))
        self.add_module(mixer, self.mixer(channels, heads))
        self.add_module(ffn_norm, nn.LayerNorm(channels, eps=1e-6))
        self.ffn = FFN(channels, int(channels * ffn_ratio))
        self.drop_path = DropPath(drop_path)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale is not None:
            self.gamma_1 = nn.Parameter(torch.full((1, 1, 1, channels), float(layer_scale)))
            self.gamma_2 = nn.Parameter(torch.full((1, 1, 1, channels), float(layer_scale)))

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        norm, mixer, ffn_norm = self.parts()
        x = x + self.pos(x)
        x = x + self.drop_path(times(self.gamma_1, mixer(norm(x), attend)))
        x = x + self.drop_path(times(self.gamma_2, self.ffn(ffn_norm(x))))
        return x

    def parts(self) -> list[nn.Module]:
        """First norm, mixer, second norm."""
        return [getattr(self, name) for name in self.names]


class GatedBlock(Block):
    """The block of RAVLT and MAViT: :class:`GatedAttention` in the place of the retention."""

    mixer = GatedAttention
    names = ('norm1', 'attn', 'norm2')


class Downsample(nn.Module):
    """3x3 convolution of stride 2 and a norm: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C')."""

    def __init__(self, channels: int, out_channels: int, norm_cfg: dict) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)
        self.norm = build_norm(norm_cfg, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.reduction(even_sides(x.permute(0, 3, 1, 2))))  # (B, C', H/2, W/2)
        return x.permute(0, 2, 3, 1)  # -> (B, H/2, W/2, C')


class Stage(nn.Module):
    """The blocks of one resolution, which share one attention, and the way to the next."""

    def __init__(
        self,
        blocks: list[Block],
        attention: GridAttention,
        downsample: Downsample | None,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), before the downsample."""
        attend = self.attention.prepare(x)
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, attend, use_reentrant=False)
            else:
                x = block(x, attend)
        return x
