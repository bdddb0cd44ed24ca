"""The layers of RMT in the order the data flows: stem, retention, FFN, block, downsample, stage.

B batch, H W the stage's grid, C channels, n heads, d = C / n channels a head. Tensors are (B, H, W, C) inside the network; convolutions see
the same memory as (B, C, H, W) in channels-last format, so that no layout change copies.
Module names are those of the released files (see ``checkpoint.py``).
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .retention import decay_rates, get_implementation, rotary_tables, rotate

NORMS = {'BN': nn.BatchNorm2d, 'SyncBN': nn.SyncBatchNorm}


def build_norm(norm_cfg: dict, channels: int) -> nn.Module:
    """The norm behind a strided convolution: ``dict(type='BN' | 'SyncBN', requires_grad=True, **kwargs)``."""
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


class DepthwiseConv(nn.Module):
    """Depthwise k x k convolution with bias on (B, H, W, C)."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # -> (B, C, H, W) -> back


class StagePositions(nn.Module):
    """Makes the tables that all blocks of a stage share. Has no weights and no buffers."""

    def __init__(self, channels: int, heads: int, span: float, attention: str, axial: bool) -> None:
        super().__init__()
        self.head_dim, self.heads, self.span = channels // heads, heads, span
        self.implementation = get_implementation(attention, axial)

    def forward(self, H: int, W: int, device: torch.device) -> tuple[Tensor, ...]:
        """Cosines, sines, and the implementation's decay tables for an H x W grid."""
        rates = decay_rates(self.heads, self.span, device)
        return *rotary_tables(self.head_dim, H, W, device), *self.implementation.decay(rates, H, W)


class Retention(nn.Module):
    """Manhattan self-attention with a local enhancement: ``out(attention(q', k', v) + DW5x5(v))``."""

    def __init__(self, channels: int, heads: int, attention: str, axial: bool) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.attend = get_implementation(attention, axial).attend
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.lepe = DepthwiseConv(channels, 5)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, positions: tuple[Tensor, ...]) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); ``positions`` from :class:`StagePositions`."""
        cos, sin, *decay = positions
        v = self.v_proj(x)
        q = self.q_proj(x).unflatten(-1, (self.heads, -1))  # (B, H, W, n, d)
        k = self.k_proj(x).unflatten(-1, (self.heads, -1)) * self.scale
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = self.attend(q, k, v.unflatten(-1, (self.heads, -1)), *decay)
        return self.out_proj(out.flatten(-2) + self.lepe(v))


class FFN(nn.Module):
    """Feed-forward network with a depthwise convolution inside: ``fc2(h + DW3x3(h)), h = GELU(fc1 x)``."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.dwconv = DepthwiseConv(hidden, 3)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.fc1(x))
        return self.fc2(h + self.dwconv(h))


class DropPath(nn.Module):
    """Stochastic depth: drops a whole residual branch of a sample with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


class Block(nn.Module):
    """``x += DW3x3(x); x += gamma_1 * Ret(LN(x)); x += gamma_2 * FFN(LN(x))`` (paper, figure 3)."""

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
        self.pos = DepthwiseConv(channels, 3)
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
        x = x + self.pos(x)
        x = x + self.residual(
            self.retention(self.retention_layer_norm(x), positions), self.gamma_1
        )
        return x + self.residual(self.ffn(self.final_layer_norm(x)), self.gamma_2)

    def residual(self, x: Tensor, gamma: Tensor | None) -> Tensor:
        return self.drop_path(x if gamma is None else gamma * x)


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
        self, blocks: list[Block], positions: StagePositions, downsample: Downsample | None, with_cp: bool
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
