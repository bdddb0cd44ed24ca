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
from .attention.rotary import (
    by_head,
    feature,
    in_float32,
    in_slabs,
    on_grid,
    rows_of,
    slabs,
    turn,
)

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
    """The same in slabs of rows."""
    places, scale = q.shape[1] * q.shape[2], q.shape[-1] ** -0.5
    keys = sums = 0  # of k (B, n, d), R(k) v^T (B, n, d, d)
    for rows in slabs(k):
        part = feature(k[:, rows])
        keys = keys + part.sum((1, 2))
        turned = by_head(turn(part, rows_of(tables, rows)))
        sums = sums + turned.transpose(-1, -2) @ by_head(v[:, rows])
    keys, sums = keys.unsqueeze(-1) * (scale / places), sums * (scale / places)
    mean = v.mean((1, 2)).unsqueeze(2)  # (B, n, 1, d)

    def look(q: Tensor, tables: Tables) -> Tensor:
        q = feature(q)
        z = by_head(q) @ keys  # (B, n, places, 1)
        return on_grid((1 + 1 / (z + EPS)) * (by_head(turn(q, tables)) @ sums) - z * mean, q)

    return in_slabs(look, q, tables)


@MODELS.register_module()
class MAViT(ravlt.RAVLT):
    """MAViT backbone: :class:`RAVLT` with magnitude-aware linear attention."""

    sizes = VARIANTS
    linear = {'naive': mala_as_written, 'fused': mala}
