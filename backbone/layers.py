"""The layers of RMT in the order the data flows: stem, retention, FFN, block, downsample, stage.

B batch, H W the stage's grid, C channels, n heads, d = C / n channels a head. Tensors are
(B, H, W, C) inside the network; convolutions see the same memory as (B, C, H, W) in channels-last
format, so that no layout change copies.
Module names are those of the released files (see ``checkpoint.py``).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .retention import get_implementation, stage_tables

NORMS = {'BN': nn.BatchNorm2d, 'SyncBN': nn.SyncBatchNorm}


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


class PatchEmbed(nn.Module):
    """Stem: four 3x3 convolutions to stride 4, (B, 3, H, W) -> (B, ceil(H/4), ceil(W/4), C)."""

    def __init__(self, channels: int, norm_cfg: dict) -> None:
        super().__init__()
        half = channels // 2
        self.proj = nn.Sequential(
            nn.Conv2d(3, half, 3, stride=2, padding=1),
            build_norm(norm_cfg, half),
            nn.GELU(),
            nn.Conv2d(half, half, 3, padding=1),
            build_norm(norm_cfg, half),
            nn.GELU(),
            nn.Conv2d(half, channels, 3, stride=2, padding=1),
            build_norm(norm_cfg, channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            build_norm(norm_cfg, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return self.proj(x).permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)


class ResidualConv2d(nn.Conv2d):
    """Depthwise ``x + conv(x)`` in one pass: the sum is a 1 more in the middle of each filter."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # meta tensors, which count costs, know no autocast
        if x.is_meta or weight.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
            return x + super()._conv_forward(x, weight, bias)  # there 1 + weight would be rounded
        identity = F.pad(weight.new_ones(1, 1, 1, 1), (self.padding[0],) * 4)
        return super()._conv_forward(x, weight + identity, bias)


class DepthwiseConv(nn.Module):
    """Depthwise k x k convolution with bias on (B, H, W, C); ``residual`` adds its input."""

    def __init__(self, channels: int, kernel_size: int, residual: bool = False) -> None:
        super().__init__()
        conv = ResidualConv2d if residual else nn.Conv2d
        self.conv = conv(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # -> (B, C, H, W) -> back


class StagePositions(nn.Module):
    """Makes the tables that all blocks of a stage share. Has no weights and no buffers."""

    def __init__(self, channels: int, heads: int, span: float, attention: str, axial: bool) -> None:
        super().__init__()
        self.head_dim, self.heads, self.span = channels // heads, heads, span
        self.implementation = get_implementation(attention, axial)

    def forward(self, H: int, W: int, device: torch.device) -> tuple[Tensor, ...]:
        """The implementation's tables for an H x W grid."""
        return stage_tables(self.implementation, self.head_dim, self.heads, self.span, H, W, device)


class Retention(nn.Module):
    """Manhattan self-attention with a local enhancement: ``out(attention(q, k, v) + DW5x5(v))``."""

    def __init__(self, channels: int, heads: int, attention: str, axial: bool) -> None:
        super().__init__()
        self.heads = heads
        self.attend = get_implementation(attention, axial).attend
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.lepe = DepthwiseConv(channels, 5)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, positions: tuple[Tensor, ...]) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); ``positions`` from :class:`StagePositions`."""
        v = self.v_proj(x)
        heads = (t.unflatten(-1, (self.heads, -1)) for t in (self.q_proj(x), self.k_proj(x), v))
        out = self.attend(*heads, *positions)  # (B, H, W, n, d)
        return self.out_proj(self.lepe(v).add_(out.flatten(-2)))


class FFN(nn.Module):
    """Feed-forward network around a convolution: ``fc2(h + DW3x3(h)), h = GELU(fc1 x)``."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.dwconv = DepthwiseConv(hidden, 3, residual=True)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        h = self.act(h) if h.requires_grad else torch.ops.aten.gelu_(h)
        return self.fc2(self.dwconv(h))


class DropPath(nn.Module):
    """Stochastic depth: drops a whole residual branch of a sample with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale(x)
        return x if scale is None else x * scale

    def scale(self, x: Tensor) -> Tensor | None:
        """What the branch ``x`` of each sample is multiplied with, (B, 1, ...); None is 1."""
        if not self.training or self.rate == 0:
            return None
        keep = 1 - self.rate
        return x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(keep) / keep

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


class Block(nn.Module):
    """``x += DW3x3(x); x += gamma_1 * Ret(LN(x)); x += gamma_2 * FFN(LN(x))`` (section 3)."""

    def __init__(
        self,
        channels: int,
        heads: int,
        ffn_ratio: float,
        drop_path: float,
        layer_scale: float | None,
        attention: str,
        axial: bool,
    ) -> None:
        super().__init__()
        self.pos = DepthwiseConv(channels, 3, residual=True)
        self.retention_layer_norm = nn.LayerNorm(channels, eps=1e-6)
        self.retention = Retention(channels, heads, attention, axial)
        self.final_layer_norm = nn.LayerNorm(channels, eps=1e-6)
        self.ffn = FFN(channels, int(channels * ffn_ratio))
        self.drop_path = DropPath(drop_path)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale is not None:
            self.gamma_1 = nn.Parameter(torch.full((1, 1, 1, channels), layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((1, 1, 1, channels), layer_scale))

    def forward(self, x: Tensor, positions: tuple[Tensor, ...]) -> Tensor:
        x = self.pos(x)
        x = self.add(x, self.retention(self.retention_layer_norm(x), positions), self.gamma_1)
        return self.add(x, self.ffn(self.final_layer_norm(x)), self.gamma_2)

    def add(self, x: Tensor, branch: Tensor, gamma: Tensor | None) -> Tensor:
        """``x + drop_path(gamma * branch)``; may reuse the memory of ``branch``."""
        scale = self.drop_path.scale(branch)
        if gamma is not None:
            scale = gamma if scale is None else gamma * scale
        if x.dtype != branch.dtype:  # the residual stream stays float32 under autocast
            return x + (branch if scale is None else branch * scale)
        # the branch ends in a linear layer, whose backward pass does not need its output
        return branch.add_(x) if scale is None else torch.addcmul(x, branch, scale)


class Downsample(nn.Module):
    """3x3 convolution of stride 2 and a norm: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C')."""

    def __init__(self, channels: int, out_channels: int, norm_cfg: dict) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)
        self.norm = build_norm(norm_cfg, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)  # (B, C, H, W)
        return self.norm(self.reduction(x)).permute(0, 2, 3, 1)  # -> (B, H, W, C')


class Stage(nn.Module):
    """The blocks of one resolution. Position tables are made once here and shared by all blocks."""

    def __init__(
        self,
        blocks: list[Block],
        positions: StagePositions,
        downsample: Downsample | None,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.positions = positions
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), before the downsample."""
        positions = self.positions(x.shape[1], x.shape[2], x.device)
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, positions, use_reentrant=False)
            else:
                x = block(x, positions)
        return x
