"""RMT: image -> stem -> four stages -> one norm an output -> NCHW features for FPN or UperNet.

The way of an image: (B, 3, H, W) -> stem (B, H/4, W/4, C1) -> stage i (B, H/2^(i+2), W/2^(i+2), Ci)
-> [norm -> feature i (B, Ci, H/2^(i+2), W/2^(i+2))] -> downsample -> stage i + 1. Sizes round up.
"""

import re
from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .layers import Block, Downsample, PatchEmbed, Stage, StagePositions
from .variants import NUM_STAGES, get_variant
from .weights.match import load_backbone


@MODELS.register_module()
class RMT(BaseModule):
    """RMT backbone (arXiv 2309.11523) with features at strides 4, 8, 16 and 32.

    Args:
        arch: 'tiny', 'small', 'base' or 'large' (the paper's T, S, B, L), or a dict with the fields
            of :class:`~backbone.variants.Variant`.
        out_indices: stages to return, ascending. Stages behind the last one are not built.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0; None takes the
            variant's.
        frozen_stages: -1 trains everything, 0 freezes the stem, k the stem and the first k stages.
        norm_cfg: the norm of stem and downsamples, ``dict(type='BN')`` or ``dict(type='SyncBN')``.
        norm_eval: keep those norms' running statistics fixed in training. Off in the published
            training.
        with_cp: recompute each block in the backward pass instead of keeping its activations.
        attention: how attention is computed, a name in :mod:`backbone.retention`. With 'naive' all
            other layers are PyTorch's own as well: the formula as it stands.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` loads a backbone file completely or
            raises; ``key='model_ema'`` takes the averaged weights of an ImageNet file.

    Attributes:
        out_channels: channels of each returned feature.
        out_strides: stride of each returned feature.

    Raises:
        ValueError: an argument outside its choices; the message lists them.
    """

    def __init__(
        self,
        arch: str | dict = 'tiny',
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        attention: str = 'auto',
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        variant = get_variant(arch)
        norm_cfg = norm_cfg or dict(type='BN')
        rate = variant.drop_path if drop_path_rate is None else drop_path_rate
        self.variant = variant
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self._check_arguments(rate)

        num_stages = max(self.out_indices) + 1
        self.out_channels = [variant.channels[i] for i in self.out_indices]
        self.out_strides = [2 ** (i + 2) for i in self.out_indices]

        fast = attention != 'naive'
        self.patch_embed = PatchEmbed(variant.channels[0], norm_cfg, fast)
        # over the blocks of all four stages, also where the last stages are not built
        num_blocks = sum(variant.depths)
        rates = [rate * i / max(num_blocks - 1, 1) for i in range(num_blocks)]
        self.layers = nn.ModuleList()
        for i in range(num_stages):
            sizes = dict(channels=variant.channels[i], heads=variant.heads[i])
            attn = dict(attention=attention, axial=variant.axial[i])
            first = sum(variant.depths[:i])
            blocks = [
                Block(
                    **sizes,
                    **attn,
                    ffn_ratio=variant.ffn_ratio[i],
                    drop_path=rates[first + j],
                    layer_scale=variant.layer_scale[i],
                )
                for j in range(variant.depths[i])
            ]
            positions = StagePositions(**sizes, **attn, span=variant.decay_span[i])
            downsample = None
            if i < num_stages - 1:
                downsample = Downsample(*variant.channels[i : i + 2], norm_cfg, fast)
            self.layers.append(Stage(blocks, positions, downsample, with_cp))
        # keyed by stage, so that the names do not depend on which stages are returned
        self.extra_norms = nn.ModuleDict(
            {str(i): nn.LayerNorm(variant.channels[i], eps=1e-5) for i in self.out_indices}
        )
        self.apply(self._init_layer)
        self._freeze()
        self._register_load_state_dict_pre_hook(self._drop_surplus)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> contiguous (B, Ci, ceil(H / stride), ceil(W / stride)), one an index."""
        x = self.patch_embed(x)
        features = []
        for i, stage in enumerate(self.layers):
            x = stage(x)
            if i in self.out_indices:
                feature = self.extra_norms[str(i)](x)
                features.append(feature.permute(0, 3, 1, 2).contiguous())  # NHWC -> NCHW
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(features)

    def init_weights(self) -> None:
        """Load ``init_cfg``'s file strictly; without one the constructor's weights stay.

        Raises:
            CheckpointError: the file is missing, unsafe, or not the weights of this model.
        """
        if isinstance(self.init_cfg, dict) and self.init_cfg.get('type') == 'Pretrained':
            load_backbone(self, self.init_cfg['checkpoint'], self.init_cfg.get('key'))
            self._is_init = True
        else:
            super().init_weights()

    def train(self, mode: bool = True) -> 'RMT':
        """Switch the mode; frozen stages, and with ``norm_eval`` all norms, stay in eval mode."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def is_surplus(self, name: str) -> bool:
        """Whether a released file's tensor rightly has no place here.

        That is a table derived from the grid (``layers.i.Relpos``), and, with fewer
        ``out_indices``, the output norms not returned and the stages behind the last one.
        """
        last = max(self.out_indices)
        if match := re.match(r'layers\.(\d+)\.(Relpos\.(angle|decay)$|downsample\.)?', name):
            stage = int(match[1])
            behind = stage > last or (stage == last and match[2] == 'downsample.')
            derived = match[3] is not None
            return stage < NUM_STAGES and (derived or behind)
        if match := re.match(r'extra_norms\.(\d+)\.', name):
            return int(match[1]) < NUM_STAGES and int(match[1]) not in self.out_indices
        return False

    def _drop_surplus(self, state_dict: dict, prefix: str, *_) -> None:
        for key in [k for k in state_dict if k.startswith(prefix)]:
            if self.is_surplus(key[len(prefix) :]):
                del state_dict[key]

    def _check_arguments(self, drop_path_rate: float) -> None:
        indices = self.out_indices
        if not indices or list(indices) != sorted(set(indices) & set(range(NUM_STAGES))):
            raise ValueError(f'out_indices {indices}: choose from 0, 1, 2, 3, ascending, each once')
        if self.frozen_stages not in range(-1, len(self.variant.depths) + 1):
            raise ValueError(
                f'frozen_stages {self.frozen_stages}: choose from -1 (none), 0 (stem), 1, 2, 3, 4'
            )
        if not 0 <= drop_path_rate < 1:
            raise ValueError(
                f'drop_path_rate {drop_path_rate}: choose from 0 up to, not including, 1'
            )

    @staticmethod
    def _init_layer(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, *self.layers[: self.frozen_stages]]
        frozen += [n for i, n in self.extra_norms.items() if int(i) < self.frozen_stages]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)
