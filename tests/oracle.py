"""RMT once more, from the formulas alone: slow, obvious, sharing no code with ``backbone``.

Works on a state dict (float64 in the tests), in (B, C, H, W) or (B, H, W, C) as the formula reads
best. BatchNorm uses the statistics of the batch (``live_bn=True``, as in training) or the stored
ones.
"""

import math

import torch
import torch.nn.functional as F


def attention(q, k, v, decay):
    """q k v (..., L, d), decay (L, L): softmax(q k^T + decay) v."""
    return torch.softmax(q @ k.transpose(-1, -2) + decay, dim=-1) @ v


def turn(x, grid_w):
    """Rotary position on (B, H, W, d): pair j turns by theta_j * (h * W + w).

    Thetas and angles are float32, as in the released model: at the 66,800 places of a large image
    the last digit of a theta is 1e-3 of an angle, so their rounding belongs to the definition.
    """
    _, H, W, d = x.shape
    out = x.clone()
    thetas = 1 / 10000 ** torch.linspace(0, 1, d // 2, dtype=torch.float32)
    p = torch.arange(H)[:, None] * grid_w + torch.arange(W)[None, :]
    for j, theta in enumerate(thetas):
        angle = (p.float() * theta).double()
        cos, sin = torch.cos(angle).to(x), torch.sin(angle).to(x)
        a, b = x[..., 2 * j], x[..., 2 * j + 1]
        out[..., 2 * j] = a * cos - b * sin
        out[..., 2 * j + 1] = b * cos + a * sin
    return out


def manhattan_attention(q, k, v, heads, span, axial):
    """q k v (B, H, W, C) -> (B, H, W, C), head by head."""
    B, H, W, _ = q.shape
    rows, cols = torch.arange(H).to(q), torch.arange(W).to(q)
    dh, dw = (rows[:, None] - rows).abs(), (cols[:, None] - cols).abs()
    out = []
    for m, (qm, km, vm) in enumerate(zip(*(t.chunk(heads, -1) for t in (q, k, v)), strict=True)):
        rate = math.log(1 - 2 ** (-2 - span * m / heads))
        qm, km = turn(qm, W), turn(km, W)
        if axial:
            vm = attention(qm, km, vm, rate * dw)  # inside rows
            qm, km, vm = (t.transpose(1, 2) for t in (qm, km, vm))
            out.append(attention(qm, km, vm, rate * dh).transpose(1, 2))  # inside columns
        else:
            distance = (dh[:, None, :, None] + dw[None, :, None, :]).reshape(H * W, H * W)
            flat = (t.flatten(1, 2) for t in (qm, km, vm))
            out.append(attention(*flat, rate * distance).view(B, H, W, -1))
    return torch.cat(out, dim=-1)


class Oracle:
    """``Oracle(state_dict, variant)(x) -> list of features``; the weights may need gradients."""

    def __init__(self, weights: dict, variant, live_bn: bool = False):
        self.w, self.variant, self.live_bn = weights, variant, live_bn

    def linear(self, name, x):
        return x @ self.w[f'{name}.weight'].T + self.w[f'{name}.bias']

    def conv(self, name, x, stride=1, depthwise=False):
        weight = self.w[f'{name}.weight']
        groups = weight.shape[0] if depthwise else 1
        return F.conv2d(
            x, weight, self.w[f'{name}.bias'], stride, weight.shape[-1] // 2, groups=groups
        )

    def depthwise(self, name, x):
        return self.conv(name, x.permute(0, 3, 1, 2), depthwise=True).permute(0, 2, 3, 1)

    def batch_norm(self, name, x):
        mean, var = self.w[f'{name}.running_mean'], self.w[f'{name}.running_var']
        if self.live_bn:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        scale = self.w[f'{name}.weight'] / torch.sqrt(var + 1e-5)
        return (x - mean[:, None, None]) * scale[:, None, None] + self.w[f'{name}.bias'][
            :, None, None
        ]

    def layer_norm(self, name, x, eps):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / torch.sqrt(var + eps) * self.w[f'{name}.weight'] + self.w[
            f'{name}.bias'
        ]

    def block(self, name, x, stage):
        v = self.variant
        x = x + self.depthwise(f'{name}.pos.conv', x)
        y = self.layer_norm(f'{name}.retention_layer_norm', x, 1e-6)
        q, k, value = (self.linear(f'{name}.retention.{p}_proj', y) for p in 'qkv')
        k = k * (v.channels[stage] // v.heads[stage]) ** -0.5
        y = manhattan_attention(
            q, k, value, v.heads[stage], v.decay_span[stage], v.axial[stage]
        ) + self.depthwise(f'{name}.retention.lepe.conv', value)
        x = x + self.linear(f'{name}.retention.out_proj', y) * self.w.get(f'{name}.gamma_1', 1)
        y = self.layer_norm(f'{name}.final_layer_norm', x, 1e-6)
        h = F.gelu(self.linear(f'{name}.ffn.fc1', y))
        y = self.linear(f'{name}.ffn.fc2', h + self.depthwise(f'{name}.ffn.dwconv.conv', h))
        return x + y * self.w.get(f'{name}.gamma_2', 1)

    def stages(self, x):
        """The output of each stage, (B, H, W, C), before its norm and before its downsample."""
        for i, stride in zip((0, 3, 6, 9), (2, 1, 2, 1), strict=True):
            x = self.conv(f'patch_embed.proj.{i}', x, stride)
            x = self.batch_norm(f'patch_embed.proj.{i + 1}', x)
            x = F.gelu(x) if i < 9 else x
        x = x.permute(0, 2, 3, 1)
        found = []
        for i, depth in enumerate(self.variant.depths):
            for j in range(depth):
                x = self.block(f'layers.{i}.blocks.{j}', x, i)
            found.append(x)
            if i < 3:
                x = self.conv(f'layers.{i}.downsample.reduction', x.permute(0, 3, 1, 2), 2)
                x = self.batch_norm(f'layers.{i}.downsample.norm', x).permute(0, 2, 3, 1)
        return found

    def __call__(self, x):
        return [
            self.layer_norm(f'extra_norms.{i}', stage, 1e-5).permute(0, 3, 1, 2)
            for i, stage in enumerate(self.stages(x))
        ]
