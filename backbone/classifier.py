"""The top of RMT's classifiers, but for the last linear layer, which is any framework's own."""

import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .layers import build_norm, init_linear


@MODELS.register_module()
class ProjectionNeck(nn.Module):
    """From the last feature to one vector an image: linear, norm, SiLU, mean over the places.

    mmpretrain's ``LinearNeck`` takes the mean first, which is another function.

    Args:
        in_channels: width C of the feature.
        out_channels: width of the vector; RMT's classifiers have 1024 at every size.
        norm_cfg: the norm, ``dict(type='BN')`` or ``dict(type='SyncBN')``.
    """

    def __init__(
        self, in_channels: int, out_channels: int = 1024, norm_cfg: dict | None = None
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, out_channels)
        self.norm = build_norm(norm_cfg or dict(type='BN'), out_channels)
        init_linear(self.proj)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor]:
        """The last of the features, (B, C, H, W), -> (B, out_channels)."""
        x = self.proj(features[-1].permute(0, 2, 3, 1))  # (B, C, H, W) -> (B, H, W, out_channels)
        x = F.silu(self.norm(x.permute(0, 3, 1, 2)))  # -> (B, out_channels, H, W)
        return (x.mean(dim=(2, 3)),)
