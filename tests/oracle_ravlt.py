"""RAVLT and MAViT once more, from the formulas alone: every score written out, no code shared.

Works on a state dict under the released names, in (B, C, H, W), in float64 in the tests. BatchNorm
uses the statistics of the batch (``live_bn=True``, as in training) or the stored ones.
"""

import math

import torch
import torch.nn.functional as F


def turned(x, H, W):
    """x (L, d): pair j of channels turns by theta_j * row below d / 4, by theta * column above."""
    d = x.shape[1]
    out = torch.empty_like(x)
    count = d // 4
    for pair in range(d // 2):
        j = pair % count
        theta = 10000.0 ** -(j / (count - 1) if count > 1 else 0)
        rows = torch.arange(H, dtype=x.dtype)[:, None].expand(H, W)
        columns = torch.arange(W, dtype=x.dtype)[None, :].expand(H, W)
        angle = theta * (rows if pair < count else columns).reshape(-1)
        a, b = x[:, 2 * pair], x[:, 2 * pair + 1]
        out[:, 2 * pair] = a * torch.cos(angle) - b * torch.sin(angle)
        out[:, 2 * pair + 1] = b * torch.cos(angle) + a * torch.sin(angle)
    return out


def positive(x):
    return torch.where(x > 0, x + 1, torch.exp(x))


def softmax(q, k, v, H, W):
    """Attention of one image and head, q k v (L, d)."""
    scores = turned(q, H, W) @ turned(k, H, W).T / math.sqrt(q.shape[1])
    return torch.softmax(scores, dim=1) @ v


def ravlt(q, k, v, H, W):
    q, k = positive(q), positive(k)
    a = torch.softmax(k @ q.mean(0) / math.sqrt(q.shape[1]), dim=0)  # (L,)
    above = turned(q, H, W) @ turned(k, H, W).T * a  # (L, L)
    below = (q @ k.T * a).sum(1, keepdim=True) + 1e-6
    return (above / below) @ v


def mavit(q, k, v, H, W):
    q, k = positive(q), positive(k)
    L, d = q.shape
    z = q @ k.mean(0)[:, None] / math.sqrt(d)  # (L, 1)
    scores = turned(q, H, W) @ turned(k, H, W).T / math.sqrt(d) / L
    return ((1 + 1 / (z + 1e-6)) * scores - z / L) @ v


class Oracle:
    """``Oracle(weights, depths, heads, linear)(x) -> list of features``.

    Args:
        linear: the attention of the first two stages, :func:`ravlt` or :func:`mavit`.
    """

    def __init__(self, weights: dict, depths, heads, linear, live_bn: bool = False):
        self.w, self.depths, self.heads = weights, depths, heads
        self.linear, self.live_bn = linear, live_bn

    def conv(self, name, x, stride=1):
        weight = self.w[f'{name}.weight']
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(
            x, weight, self.w[f'{name}.bias'], stride, weight.shape[-1] // 2, groups=groups
        )

    def affine(self, name, x):
        weight, bias = self.w[f'{name}.weight'], self.w[f'{name}.bias']
        return x * weight[:, None, None] + bias[:, None, None]

    def batch_norm(self, name, x):
        mean, var = self.w[f'{name}.running_mean'], self.w[f'{name}.running_var']
        if self.live_bn:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        return self.affine(name, (x - mean[:, None, None]) / torch.sqrt(var + 1e-5)[:, None, None])

    def layer_norm(self, name, x):
        mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        return self.affine(name, (x - mean) / torch.sqrt(var + 1e-6))

    def attention(self, name, x, stage):
        B, C, H, W = x.shape
        q, k, v, o = self.conv(f'{name}.qkvo', x).split(C, dim=1)
        attend = self.linear if stage < 2 else softmax
        width, images = C // self.heads[stage], []
        for image in range(B):
            heads = []
            for m in range(self.heads[stage]):
                own = slice(m * width, (m + 1) * width)
                flat = (t[image, own].reshape(width, H * W).T for t in (q, k, v))
                heads.append(attend(*flat, H, W).T)
            images.append(torch.cat(heads).reshape(C, H, W))
        out = torch.stack(images) + self.conv(f'{name}.lepe', v)
        return self.conv(f'{name}.proj', out * o)

    def block(self, name, x, stage):
        x = x + self.conv(f'{name}.pos', x)
        y = self.attention(f'{name}.attn', self.layer_norm(f'{name}.norm1.norm', x), stage)
        x = x + self.w[f'{name}.gamma_1'] * y
        h = F.gelu(self.conv(f'{name}.ffn.fc1', self.layer_norm(f'{name}.norm2.norm', x)))
        y = self.conv(f'{name}.ffn.fc2', h + self.conv(f'{name}.ffn.dwconv', h))
        return x + self.w[f'{name}.gamma_2'] * y

    def __call__(self, x):
        for i, stride in zip((0, 3, 6, 9), (2, 1, 1, 2), strict=True):
            x = self.batch_norm(
                f'patch_embed.proj.{i + 1}', self.conv(f'patch_embed.proj.{i}', x, stride)
            )
            x = F.gelu(x) if i < 9 else x
        features = []
        for i, depth in enumerate(self.depths):
            for j in range(depth):
                x = self.block(f'layers.{i}.blocks.{j}', x, i)
            features.append(self.layer_norm(f'extra_norms.{i}.norm', x))
            if i < 3:
                x = self.conv(f'layers.{i}.downsample.reduction', x, 2)
                x = self.batch_norm(f'layers.{i}.downsample.norm', x)
        return features
