"""The layers of RMT in the order the data flows: stem, retention, FFN, block, downsample, stage.

B batch, H W the stage's grid, C channels, n heads, d = C / n channels a head. Tensors are
(B, H, W, C) inside the network; convolutions see the same memory as (B, C, H, W) in channels-last
format, so that no layout change copies.
Module names are those of the released files (see ``checkpoint.py``).
``fast=False``, which goes with ``attention='naive'``, leaves the layers to PyTorch as they stand.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.checkpoint import checkpoint

from . import kernel
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


def eager_float32(x: Tensor, weight: Tensor) -> bool:
    """Whether our own ways on a CPU apply: float32, no compiler, no tensor in name only."""
    return (
        type(x) is Tensor
        and x.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled('cpu')
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


class Conv3x3(torch.autograd.Function):
    """3x3 convolution of padding 1 whose weight gradient is computed in NCHW.

    oneDNN takes up to four times longer for it in channels-last than copy and NCHW together.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, bias, stride, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad

        def gradients(grad: Tensor, x: Tensor, *needed: bool) -> tuple:
            fixed = [weight.shape[0]], ctx.stride, (1, 1), (1, 1), False, (0, 0), 1
            return torch.ops.aten.convolution_backward(grad, x, weight, *fixed, needed)

        dx = gradients(grad, x, True, False, False)[0] if need_x else None
        dweight = dbias = None
        if need_weight or need_bias:
            nchw = kernel.nchw(grad), kernel.nchw(x)
            _, dweight, dbias = gradients(*nchw, False, need_weight, need_bias)
        return dx, dweight, dbias, None


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module, fast: bool) -> Tensor:
    """``norm(conv(x))`` on (B, C, H, W).

    Where no gradient is needed, a norm of fixed statistics is made a part of the weights.
    """
    if not fast or not eager_float32(x, conv.weight):
        return norm(conv(x))
    if torch.is_grad_enabled():
        return norm(Conv3x3.apply(x, conv.weight, conv.bias, conv.stride))
    if norm.training or norm.running_mean is None:
        return norm(conv(x))
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding)


def sum_of(x: Tensor, y: Tensor) -> Tensor:
    """``x + y``, in the memory of ``x`` where no gradients are computed.

    With them, adding in place to what is a view copies the gradient several times.
    """
    return x + y if torch.is_grad_enabled() else x.add_(y)


def gelu(x: Tensor) -> Tensor:
    """GELU, in the memory of ``x`` where no gradient needs that."""
    return F.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)


class PatchEmbed(nn.Module):
    """Stem: four 3x3 convolutions to stride 4, (B, 3, H, W) -> (B, ceil(H/4), ceil(W/4), C)."""

    def __init__(self, channels: int, norm_cfg: dict, fast: bool = True) -> None:
        super().__init__()
        self.fast = fast
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
        for i, layer in enumerate(self.proj):
            if isinstance(layer, nn.Conv2d):
                x = conv_norm(x, layer, self.proj[i + 1], self.fast)
            elif isinstance(layer, nn.GELU):
                x = gelu(x) if self.fast else layer(x)
        return x.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)


class ResidualConv2d(nn.Conv2d):
    """Depthwise ``x + conv(x)`` in one pass: the sum is a 1 more in the middle of each filter."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # meta tensors, which count costs, know no autocast
        if x.is_meta or weight.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
            return x + super()._conv_forward(x, weight, bias)  # there 1 + weight would be rounded
        return super()._conv_forward(x, self.summed_weight(), bias)

    def summed_weight(self) -> Tensor:
        """The weight of ``x + conv(x)``."""
        return self.weight + F.pad(self.weight.new_ones(1, 1, 1, 1), (self.padding[0],) * 4)


class DepthwiseConv(nn.Module):
    """Depthwise k x k convolution with bias on (B, H, W, C); ``residual`` adds its input.

    With ``activates`` both are those of ``GELU(x)``, and the memory of x may be reused.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        residual: bool = False,
        activates: bool = False,
        fast: bool = True,
    ) -> None:
        super().__init__()
        self.activates, self.fast = activates, fast
        conv = ResidualConv2d if residual else nn.Conv2d
        self.conv = conv(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        trains = self.fast and torch.is_grad_enabled() and eager_float32(x, conv.weight)
        if trains and kernel.available():
            weight = conv.summed_weight() if isinstance(conv, ResidualConv2d) else conv.weight
            return kernel.depthwise(x, weight, conv.bias, gelu=self.activates)
        if self.activates:
            x = gelu(x) if self.fast else F.gelu(x)
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
        self.lepe = DepthwiseConv(channels, 5, fast=attention != 'naive')
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, positions: tuple[Tensor, ...]) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); ``positions`` from :class:`StagePositions`."""
        v = self.v_proj(x)
        heads = (t.unflatten(-1, (self.heads, -1)) for t in (self.q_proj(x), self.k_proj(x), v))
        out = self.attend(*heads, *positions).flatten(-2)  # (B, H, W, n, d) -> (B, H, W, C)
        return self.out_proj(sum_of(self.lepe(v), out))


SLAB_BYTES = 16 * 2**20  # of the hidden activations that are computed at once


class FFN(nn.Module):
    """Feed-forward network around a convolution: ``fc2(h + DW3x3(h)), h = GELU(fc1 x)``.

    Without gradients, a large image goes through in slabs of rows: its hidden activations, three or
    four times its size, are never whole and stay in the cache.
    """

    def __init__(self, channels: int, hidden: int, fast: bool = True) -> None:
        super().__init__()
        self.fast = fast
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = DepthwiseConv(hidden, 3, residual=True, activates=True, fast=fast)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        if not self.fast or torch.is_grad_enabled() or not eager_float32(x, self.fc1.weight):
            return self.fc2(self.hidden(x))
        B, H, W, _ = x.shape
        rows = max(8, SLAB_BYTES // (B * W * self.fc1.out_features * x.element_size()))
        if rows >= H:
            return self.fc2(self.hidden(x))
        out = torch.empty_like(x)
        for top in range(0, H, rows):
            first = max(top - 1, 0)  # the convolution needs a row more on each side
            hidden = self.hidden(x[:, first : top + rows + 1])[:, top - first :][:, :rows]
            out[:, top : top + rows] = self.fc2(hidden)
        return out

    def hidden(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, hidden), what ``fc2`` takes."""
        return self.dwconv(self.fc1(x))


class DropPath(nn.Module):
    """Stochastic depth: drops a whole residual branch of a sample with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def scale(self, x: Tensor) -> Tensor | None:
        """What the branch ``x`` of each sample is multiplied with, (B, 1, ...); None is 1.

        The block multiplies and adds in one pass.
        """
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
        fast = attention != 'naive'
        self.pos = DepthwiseConv(channels, 3, residual=True, fast=fast)
        self.retention_layer_norm = nn.LayerNorm(channels, eps=1e-6)
        self.retention = Retention(channels, heads, attention, axial)
        self.final_layer_norm = nn.LayerNorm(channels, eps=1e-6)
        self.ffn = FFN(channels, int(channels * ffn_ratio), fast)
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
        return sum_of(branch, x) if scale is None else torch.addcmul(x, branch, scale)


class Downsample(nn.Module):
    """3x3 convolution of stride 2 and a norm: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C')."""

    def __init__(self, channels: int, out_channels: int, norm_cfg: dict, fast: bool = True) -> None:
        super().__init__()
        self.fast = fast
        self.reduction = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)
        self.norm = build_norm(norm_cfg, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)  # (B, C, H, W)
        x = conv_norm(x, self.reduction, self.norm, self.fast)
        return x.permute(0, 2, 3, 1)  # -> (B, H, W, C')


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
