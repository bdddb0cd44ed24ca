"""MAViT: RAVLT with another linear attention.

"Rectifying Magnitude Neglect in Linear Attention" (arXiv 2507.00698). Sizes, layers and names in
files are RAVLT's.

B batch, H W the stage's grid, L = H * W places, n heads, d channels a head.
"""

from dataclasses import replace

import torch
from mmengine.registry import MODELS
from torch import Tensor

from . import ravlt
from .attention.positions import Tables
from .attention.rotary import by_head, feature, in_float32, on_grid, turn

VARIANTS: dict[str, ravlt.Variant] = {
    arch: replace(size, released_name=f'MALA_{size.letter}')
    for arch, size in ravlt.VARIANTS.items()
}

EPS = 1e-6


@in_float32
def mala_as_written(q: Tensor, k: Tensor, v: Tensor, tables: Tables) -> Tensor:
    """``(1 + 1 / z_i) R(q_i) mean_l R(k_l) v_l^T / sqrt(d) - z_i mean(v)``, q and k by ``feature``.

    z is ``q_i mean(k) / sqrt(d)``. Unturned, the weights of a query sum to one.
    """
    scale = q.shape[-1] ** -0.5
    q, k = feature(q), feature(k)
    z = (q * k.mean((1, 2), keepdim=True)).sum(-1, keepdim=True) * scale  # (B, H, W, n, 1)
    places = k.shape[1] * k.shape[2]
    sums = torch.einsum('bhwnc,bhwne->bnce', turn(k, tables), v) / places
    out = torch.einsum('bhwnc,bnce->bhwne', turn(q, tables), sums) * scale
    return (1 + 1 / (z + EPS)) * out - z * v.mean((1, 2), keepdim=True)


@in_float32
def mala(q: Tensor, k: Tensor, v: Tensor, tables: Tables) -> Tensor:
    """The same, with as few tensors of the queries' size as can be."""
    grid, scale = v, q.shape[-1] ** -0.5
    k, values = feature(k), by_head(v)  # (B, n, L, d)
    mean = by_head(k).mean(2).unsqueeze(-1) * scale  # (B, n, d, 1)
    sums = by_head(turn(k, tables)).transpose(-1, -2) @ values * (scale / values.shape[2])
    del k
    q = feature(q)
    z = by_head(q) @ mean  # (B, n, L, 1)
    out, mean = by_head(turn(q, tables)) @ sums, values.mean(2, keepdim=True)
    factor = 1 + 1 / (z + EPS)
    if torch.is_grad_enabled():
        return on_grid(out * factor - z * mean, grid)
    return on_grid(out.mul_(factor).addcmul_(z, mean, value=-1), grid)


@MODELS.register_module()
class MAViT(ravlt.RAVLT):
    """MAViT backbone: :class:`RAVLT` with magnitude-aware linear attention."""

    sizes = VARIANTS
    linear = {'naive': mala_as_written, 'fused': mala}
