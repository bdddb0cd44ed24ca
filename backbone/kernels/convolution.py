"""Convolutions on a CPU in float32, with gradients of our own where PyTorch's are slow.

B batch, H W the grid, C channels. Convolutions of :mod:`backbone.layers` see (B, H, W, C) memory as
(B, C, H, W) in channels-last format.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version
from torch.nn.utils.fusion import fuse_conv_bn_weights

from . import build

# --- 3x3 -----------------------------------------------------------------------------------------


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """``norm(conv(x))`` on (B, C, H, W), of a 3x3 convolution of padding 1.

    Where no gradient is needed, a norm of fixed statistics is made a part of the weights.
    """
    if torch.is_grad_enabled():
        return norm(Conv3x3.apply(x, conv.weight, conv.bias, conv.stride))
    if norm.training or norm.running_mean is None:
        return norm(conv(x))
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding)


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
            nchw = to_nchw(grad), to_nchw(x)
            _, dweight, dbias = gradients(*nchw, False, need_weight, need_bias)
        return dx, dweight, dbias, None


def to_nchw(x: Tensor) -> Tensor:
    """Contiguous copy of x (B, C, H, W), float32; quicker than PyTorch's from channels-last."""
    last = x.permute(0, 2, 3, 1)
    if not (build.available() and last.is_contiguous()):
        return x.contiguous()
    out = x.new_empty(x.shape)
    build.call('rmt_to_nchw', [last, out], *last.shape)
    return out


# --- depthwise -----------------------------------------------------------------------------------


def depthwise(x: Tensor, conv: nn.Conv2d, residual: bool = False, activate: bool = False) -> Tensor:
    """Depthwise convolution of x (B, H, W, C), of width 3 or 5 and padded to keep the size.

    Args:
        residual: ``x + conv(x)`` in one pass: the sum is a 1 more in the middle of each filter.
        activate: both are those of ``GELU(x)``, and the memory of x may be reused.
    """
    weight = conv.weight
    if residual:
        weight = weight + F.pad(weight.new_ones(1, 1, 1, 1), (conv.padding[0],) * 4)
    if torch.is_grad_enabled() and build.available():
        # (B, H, W, C) -> (B, C, H, W) -> back
        x = x.contiguous().permute(0, 3, 1, 2)
        return Depthwise.apply(x, weight, conv.bias, activate).permute(0, 2, 3, 1)
    if activate:
        x = F.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)
    x = x.permute(0, 3, 1, 2)  # -> (B, C, H, W)
    return F.conv2d(x, weight, conv.bias, 1, conv.padding, 1, conv.groups).permute(0, 2, 3, 1)


class Depthwise(torch.autograd.Function):
    """On (B, C, H, W) in channels-last memory; weight (C, 1, K, K), bias (C).

    Its gradients are ours: oneDNN takes several times longer for them. With ``gelu`` it is the
    convolution of ``GELU(x)``, and the memory of x then holds GELU's derivative, which the backward
    pass needs instead of x.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, gelu: bool) -> Tensor:
        slope = None
        if gelu:
            slope, x = x, torch.empty_like(x)
            tensors = [t.permute(0, 2, 3, 1) for t in (slope, x)]  # (B, H, W, C)
            build.call('rmt_gelu', tensors, ctypes.c_int64(x.numel()))
            increment_version(slope)  # whoever has kept it for the backward pass is told
        ctx.save_for_backward(x, weight, slope)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        x, weight, slope = ctx.saved_tensors
        x, grad = (t.permute(0, 2, 3, 1).contiguous() for t in (x, grad))  # (B, H, W, C)
        slope = None if slope is None else slope.permute(0, 2, 3, 1)
        channels, kernel_size = x.shape[-1], weight.shape[-1]
        if kernel_size not in (3, 5):
            raise ValueError(f'weight: a width of 3 or 5 wanted, not {kernel_size}')
        build.check_shapes(
            weight=(weight, (channels, 1, kernel_size, kernel_size)), grad=(grad, x.shape)
        )
        sizes = *x.shape, kernel_size
        dx, dweight, dbias = (x.new_empty(s) for s in (x.shape, weight.shape, channels))
        tensors = [x, weight.contiguous(), grad, slope, dx, dweight, dbias]
        build.call('rmt_depthwise_backward', tensors, *sizes)
        return dx.permute(0, 3, 1, 2), dweight, dbias, None
