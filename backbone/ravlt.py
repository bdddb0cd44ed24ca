"""RAVLT: the table of its sizes, its linear attention, the network, and the names in its files.

"Breaking the Low-Rank Dilemma of Linear Attention" (arXiv 2411.07635). What tells T, S, B and L
apart stands in :data:`VARIANTS` and only there. What every family shares, from image to features,
is :mod:`backbone.network`.

B batch, H W the stage's grid, L = H * W places, n heads, d channels a head.
"""

import re
from dataclasses import dataclass

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .attention import head_width
from .attention.positions import Tables
from .attention.rotary import (
    SOFTMAX,
    RotaryAttention,
    by_head,
    feature,
    in_float32,
    in_slabs,
    on_grid,
    rows_of,
    slabs,
    turn,
)
from .layers import GatedBlock
from .network import Network, Size


@dataclass(frozen=True, kw_only=True)
class Variant(Size):
    """The size of one RAVLT or MAViT: a :class:`Size` whose heads are multiples of 4 wide."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for channels, heads in zip(self.channels, self.heads, strict=True):
            if head_width(channels, heads) % 4:
                raise ValueError(
                    f'heads: {channels} channels over {heads} heads: a head needs a width that is '
                    'a multiple of 4, half its pairs of channels turn by the row, half by the '
                    'column'
                )


VARIANTS: dict[str, Variant] = {
    'tiny': Variant(
        channels=(64, 128, 256, 512),
        depths=(2, 2, 6, 2),
        heads=(1, 2, 4, 8),
        ffn_ratio=(3.5, 3.5, 3.5, 3.5),
        layer_scale=(1, 1, 1, 1),
        drop_path=0.1,
        letter='T',
        released_name='RAVLT_T',
    ),
    'small': Variant(
        channels=(64, 128, 320, 512),
        depths=(3, 5, 9, 3),
        heads=(1, 2, 5, 8),
        ffn_ratio=(3.5, 3.5, 3.5, 3.5),
        layer_scale=(1, 1, 1, 1),
        drop_path=0.15,
        letter='S',
        released_name='RAVLT_S',
    ),
    'base': Variant(
        channels=(96, 192, 384, 512),
        depths=(4, 6, 12, 6),
        heads=(1, 2, 6, 8),
        ffn_ratio=(3.5, 3.5, 3.5, 3.5),
        layer_scale=(1, 1, 1e-6, 1e-6),
        drop_path=0.4,
        letter='B',
        released_name='RAVLT_B',
    ),
    'large': Variant(
        channels=(96, 192, 448, 640),
        depths=(4, 7, 19, 8),
        heads=(1, 2, 7, 10),
        ffn_ratio=(3.5, 3.5, 3.5, 3.5),
        layer_scale=(1e-6, 1e-6, 1e-6, 1e-6),
        drop_path=0.55,
        letter='L',
        released_name='RAVLT_L',
    ),
}

LINEAR_STAGES = 2
"""The first so many; the places of the others are few, and attend by softmax."""


# --- attention: RALA -----------------------------------------------------------------------------

EPS = 1e-6


@in_float32
def rala_as_written(q: Tensor, k: Tensor, v: Tensor, tables: Tables) -> Tensor:
    """``R(q_i) sum_l a_l R(k_l) v_l^T / (q_i sum_l a_l k_l)`` with q and k as :func:`feature`.

    The weights a of an image and head are a softmax over its places of ``mean(q) k_l / sqrt(d)``.
    """
    q, k = feature(q), feature(k)
    scores = (q.mean((1, 2), keepdim=True) * k).sum(-1) * q.shape[-1] ** -0.5  # (B, H, W, n)
    weights = scores.flatten(1, 2).softmax(dim=1).view_as(scores).unsqueeze(-1)
    sums = torch.einsum('bhwnc,bhwne->bnce', weights * turn(k, tables), v)
    keys = (weights * k).sum((1, 2))  # (B, n, d)
    out = torch.einsum('bhwnc,bnce->bhwne', turn(q, tables), sums)
    return out / (torch.einsum('bhwnc,bnc->bhwn', q, keys).unsqueeze(-1) + EPS)


@in_float32
def rala(q: Tensor, k: Tensor, v: Tensor, tables: Tables) -> Tensor:
    """The same in slabs of rows; the softmax goes along with the highest score so far."""
    places = q.shape[1] * q.shape[2]
    mean = sum(feature(q[:, rows]).sum((1, 2)) for rows in slabs(q))  # (B, n, d)
    mean = mean.unsqueeze(-1) * (q.shape[-1] ** -0.5 / places)
    highest = torch.full_like(mean[:, :, :1], -torch.inf)  # (B, n, 1, 1)
    # of the weights; and, by them, of k (B, n, d, 1) and of R(k) v^T (B, n, d, d)
    total = keys = sums = 0
    for rows in slabs(k):
        part = feature(k[:, rows])
        scores = by_head(part) @ mean  # (B, n, places, 1)
        before, highest = highest, torch.maximum(highest, scores.detach().amax(2, keepdim=True))
        weights, less = (scores - highest).exp(), (before - highest).exp()
        total = total * less + weights.sum(2, keepdim=True)
        keys = keys * less + by_head(part).transpose(-1, -2) @ weights
        values = by_head(v[:, rows]) * weights
        sums = sums * less + by_head(turn(part, rows_of(tables, rows))).transpose(-1, -2) @ values
    keys, sums = keys / total, sums / total

    def look(q: Tensor, tables: Tables) -> Tensor:
        q = feature(q)
        return on_grid(by_head(turn(q, tables)) @ sums / (by_head(q) @ keys + EPS), q)

    return in_slabs(look, q, tables)


# --- the network ---------------------------------------------------------------------------------


@MODELS.register_module()
class RAVLT(Network):
    """RAVLT backbone: :class:`Network` with rank-augmented linear attention in its first stages.

    Its ``arch`` as a dict has the fields of :class:`Variant`, its ``attention`` is one of
    :data:`backbone.attention.rotary.NAMES`.
    """

    sizes = VARIANTS
    size_type = Variant
    stem_strides = (2, 1, 1, 2)
    output_eps = 1e-6
    derived = r'layers\.[0-3]\.RoPE\.angle'
    linear = {'naive': rala_as_written, 'fused': rala}

    def _block(self, stage: int, drop_path: float) -> GatedBlock:
        size = self.variant
        return GatedBlock(
            size.channels[stage],
            size.heads[stage],
            ffn_ratio=size.ffn_ratio[stage],
            drop_path=drop_path,
            layer_scale=size.layer_scale[stage],
        )

    def _attention(self, stage: int, name: str) -> RotaryAttention:
        width = head_width(self.variant.channels[stage], self.variant.heads[stage])
        return RotaryAttention(name, width, self.linear if stage < LINEAR_STAGES else SOFTMAX)

    def _begin(self) -> None:
        self.apply(init_normal)

    @staticmethod
    def from_released(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        return from_released(state_dict)


def init_normal(module: nn.Module) -> None:
    """Give a linear layer or convolution the weights that training begins with."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


# --- the names in released files -----------------------------------------------------------------

RELEASED_LAYERS = {
    'norm1.norm': 'norm1',
    'norm2.norm': 'norm2',
    'attn.lepe': 'attn.lepe.conv',
    'ffn.dwconv': 'ffn.dwconv.conv',
    'pos': 'pos.conv',
}
"""Layers of a block: as released -> here. All other names are the released ones."""

_LAYER = re.compile(r'((?:.*\.)?layers\.\d+\.blocks\.\d+\.)(.+)(\.(?:weight|bias))')
_OUTPUT_NORM = re.compile(r'((?:.*\.)?extra_norms\.\d+)(\.norm)?(\.(?:weight|bias))')
_LINEAR = re.compile(r'(.*\.)?(attn\.(qkvo|proj)|ffn\.fc[12])\.weight|(proj|head)\.weight')
_GAMMA = re.compile(r'(.*\.)?gamma_[12]')


def from_released(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Released names and shapes in ours, with any prefix; what is ours stays as it is.

    A 1x1 convolution (out, in, 1, 1) is linear here, also on top of an ImageNet classifier; a layer
    scale (1, C, 1, 1) has its channels last. A name whose place is taken keeps its own, so that
    nothing goes unnoticed.
    """
    found = {}
    for name, tensor in state_dict.items():
        ours = name
        if match := _LAYER.fullmatch(name):
            ours = match[1] + RELEASED_LAYERS.get(match[2], match[2]) + match[3]
        elif match := _OUTPUT_NORM.fullmatch(name):
            ours = match[1] + match[3]
        if isinstance(tensor, Tensor) and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            if _LINEAR.fullmatch(ours):
                tensor = tensor[:, :, 0, 0]
            elif _GAMMA.fullmatch(ours):
                tensor = tensor.permute(0, 2, 3, 1)
        found[name if ours in state_dict else ours] = tensor
    return found


def to_released(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The other way: our names and shapes in the released ones."""
    here = {ours: released for released, ours in RELEASED_LAYERS.items()}
    found = {}
    for name, tensor in state_dict.items():
        if _LINEAR.fullmatch(name) and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        elif _GAMMA.fullmatch(name) and tensor.shape[:3] == (1, 1, 1):
            tensor = tensor.permute(0, 3, 1, 2)
        if match := _LAYER.fullmatch(name):
            name = match[1] + here.get(match[2], match[2]) + match[3]
        elif match := _OUTPUT_NORM.fullmatch(name):
            name = f'{match[1]}.norm{match[3]}'
        found[name] = tensor
    return found
