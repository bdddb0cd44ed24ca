"""RMT: the table of its sizes, then image -> stem -> four stages -> one norm an output -> NCHW.

What tells T, S, B and L apart stands in :data:`VARIANTS` and only there. A stage is one of the four
resolutions; a tuple has one entry a stage.

The way of an image: (B, 3, H, W) -> stem (B, H/4, W/4, C1) -> stage i (B, H/2^(i+2), W/2^(i+2), Ci)
-> [norm -> feature i (B, Ci, H/2^(i+2), W/2^(i+2))] -> downsample -> stage i + 1. Sizes round up.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .attention import StageAttention, head_width
from .kernels.compiled import let_inductor_order_symbols
from .kernels.layers import accelerate
from .layers import Block, Downsample, PatchEmbed, Stage, init_linear


@dataclass(frozen=True)
class Variant:
    """The size of one RMT (the paper's table of architectures).

    Attributes:
        channels: width of each stage.
        depths: number of blocks in each stage.
        heads: attention heads of each stage; must divide its channels into even parts.
        decay_span: the span r of the heads' decay rates, ``log(1 - 2**(-2 - r * m / heads))``.
        ffn_ratio: hidden width of the feed-forward network over the stage's width.
        axial: True where attention is decomposed along rows and columns, False where it is whole.
        layer_scale: initial value of the residual scales, None where the stage has none.
        drop_path: stochastic depth rate of the last block as used downstream (the first has 0).
        letter: the paper's name ("T"); empty for a custom size.
        released_name: the name in the released code and its file names.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    decay_span: tuple[float, ...]
    ffn_ratio: tuple[float, ...]
    axial: tuple[bool, ...]
    layer_scale: tuple[float | None, ...] = (None, None, None, None)
    drop_path: float = 0.1
    letter: str = ''
    released_name: str = ''

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # configs write lists
                object.__setattr__(self, field.name, tuple(value))
        per_stage = (
            'channels',
            'depths',
            'heads',
            'decay_span',
            'ffn_ratio',
            'axial',
            'layer_scale',
        )
        for name in per_stage:
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != NUM_STAGES:
                raise ValueError(f'arch: {name} needs {NUM_STAGES} entries, one a stage: {value!r}')
        for channels, heads in zip(self.channels, self.heads, strict=True):
            head_width(channels, heads)


NUM_STAGES = 4

DERIVED = r'layers\.[0-3]\.Relpos\.(angle|decay)'
"""Tables that follow from the size: released files store them, a model here makes them."""

VARIANTS: dict[str, Variant] = {
    'tiny': Variant(
        channels=(64, 128, 256, 512),
        depths=(2, 2, 8, 2),
        heads=(4, 4, 8, 16),
        decay_span=(4, 4, 6, 6),
        ffn_ratio=(3, 3, 3, 3),
        axial=(True, True, False, False),
        drop_path=0.1,
        letter='T',
        released_name='RMT_T3',
    ),
    'small': Variant(
        channels=(64, 128, 256, 512),
        depths=(3, 4, 18, 4),
        heads=(4, 4, 8, 16),
        decay_span=(4, 4, 6, 6),
        ffn_ratio=(4, 4, 3, 3),
        axial=(True, True, True, False),
        drop_path=0.15,
        letter='S',
        released_name='RMT_S',
    ),
    'base': Variant(
        channels=(80, 160, 320, 512),
        depths=(4, 8, 25, 8),
        heads=(5, 5, 10, 16),
        decay_span=(5, 5, 6, 6),
        ffn_ratio=(4, 4, 3, 3),
        axial=(True, True, True, False),
        layer_scale=(None, None, 1e-6, 1e-6),
        drop_path=0.4,
        letter='B',
        released_name='RMT_M2',
    ),
    'large': Variant(
        channels=(112, 224, 448, 640),
        depths=(4, 8, 25, 8),
        heads=(7, 7, 14, 20),
        decay_span=(6, 6, 6, 6),
        ffn_ratio=(4, 4, 3, 3),
        axial=(True, True, True, False),
        layer_scale=(None, None, 1e-6, 1e-6),
        drop_path=0.5,
        letter='L',
        released_name='RMT_L6',
    ),
}


PRETRAINED_KEYS = ('type', 'checkpoint', 'key', 'prefix', 'map_location')
"""What an ``init_cfg`` of type Pretrained may say."""


def get_variant(arch: str | dict) -> Variant:
    """Look up a variant by name, or make one from a dict of :class:`Variant`'s fields.

    Raises:
        ValueError: unknown name, missing or unknown field, or sizes that do not fit together.
    """
    if isinstance(arch, str):
        if arch not in VARIANTS:
            raise ValueError(
                f'arch {arch!r} is unknown; choose from {", ".join(VARIANTS)}, or give a dict'
            )
        return VARIANTS[arch]
    known = {field.name for field in fields(Variant)}
    unknown = sorted(set(arch) - known)
    if unknown:
        raise ValueError(
            f'arch: unknown {", ".join(unknown)}; a custom size has {", ".join(sorted(known))}'
        )
    try:
        return Variant(**arch)
    except TypeError as error:
        raise ValueError(f'arch: {error}') from error


@MODELS.register_module()
class RMT(nn.Module):
    """RMT backbone (arXiv 2309.11523) with features at strides 4, 8, 16 and 32.

    Args:
        arch: 'tiny', 'small', 'base' or 'large' (the paper's T, S, B, L), or a dict with the fields
            of :class:`Variant`.
        out_indices: stages to return, ascending. Stages behind the last one are not built.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0; None takes the
            variant's.
        frozen_stages: -1 trains everything, 0 freezes the stem, k the stem and the first k stages.
        norm_cfg: the norm of stem and downsamples, ``dict(type='BN')`` or ``dict(type='SyncBN')``.
        norm_eval: keep those norms' running statistics fixed in training. Off in the published
            training.
        with_cp: recompute each block in the backward pass instead of keeping its activations.
        attention: how attention is computed, a name in :mod:`backbone.attention`. With 'naive' all
            other layers are PyTorch's own as well: the formula as it stands.
        output_norms: give each returned feature a LayerNorm of its own, as detectors and segmentors
            have it; a classifier has none.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` loads a backbone file completely or
            raises; ``key='model_ema'`` takes the averaged weights of an ImageNet file,
            ``prefix='student.backbone'`` the names that begin so. mmengine's other initialisations
            work too.

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
        output_norms: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__()
        self.init_cfg = copy.deepcopy(init_cfg)
        self.is_init = False
        variant = get_variant(arch)
        norm_cfg = norm_cfg or dict(type='BN')
        rate = variant.drop_path if drop_path_rate is None else drop_path_rate
        self.variant = variant
        self.out_indices = tuple(out_indices)
        self.output_norms = output_norms
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self._check_arguments(rate)

        num_stages = max(self.out_indices) + 1
        self.out_channels = [variant.channels[i] for i in self.out_indices]
        self.out_strides = [2 ** (i + 2) for i in self.out_indices]

        self.patch_embed = PatchEmbed(variant.channels[0], norm_cfg)
        # over the blocks of all four stages, also where the last stages are not built
        num_blocks = sum(variant.depths)
        rates = [rate * i / max(num_blocks - 1, 1) for i in range(num_blocks)]
        self.layers = nn.ModuleList()
        for i in range(num_stages):
            channels, heads = variant.channels[i], variant.heads[i]
            first = sum(variant.depths[:i])
            blocks = [
                Block(
                    channels,
                    heads,
                    ffn_ratio=variant.ffn_ratio[i],
                    drop_path=rates[first + j],
                    layer_scale=variant.layer_scale[i],
                )
                for j in range(variant.depths[i])
            ]
            manhattan = StageAttention(
                attention,
                heads,
                head_width(channels, heads),
                variant.decay_span[i],
                variant.axial[i],
            )
            downsample = None
            if i < num_stages - 1:
                downsample = Downsample(channels, variant.channels[i + 1], norm_cfg)
            self.layers.append(Stage(blocks, manhattan, downsample, with_cp))
        # keyed by stage, so that the names do not depend on which stages are returned
        normed = self.out_indices if output_norms else ()
        self.extra_norms = nn.ModuleDict(
            {str(i): nn.LayerNorm(variant.channels[i], eps=1e-5) for i in normed}
        )
        if attention != 'naive':
            accelerate(self)
        self.apply(init_linear)
        self._freeze()
        self._register_load_state_dict_pre_hook(self._before_loading)
        self.register_load_state_dict_post_hook(_after_loading)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> contiguous (B, Ci, ceil(H / stride), ceil(W / stride)), one an index."""
        if torch.compiler.is_compiling():
            let_inductor_order_symbols()
        x = self.patch_embed(x)
        features = []
        for i, stage in enumerate(self.layers):
            x = stage(x)
            if i in self.out_indices:
                feature = self.extra_norms[str(i)](x) if self.output_norms else x
                features.append(feature.permute(0, 3, 1, 2).contiguous())  # NHWC -> NCHW
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(features)

    def init_weights(self) -> None:
        """Load ``init_cfg``'s file strictly; without one the constructor's weights stay.

        mmengine's models call it once for each of their parts.

        Raises:
            CheckpointError: the file is missing, unsafe, or not the weights of this model.
        """
        # not imported before: mmengine.model takes PyTorch's distributed optimizers along, seconds;
        # weights/ knows the families of models, so it imports this module
        from mmengine.model import initialize

        from .weights.match import load_backbone

        cfgs = _as_list(self.init_cfg)
        # a file has the last word
        for cfg in sorted(cfgs, key=lambda cfg: cfg['type'] == 'Pretrained'):
            if cfg['type'] == 'Pretrained':
                options = {name: cfg[name] for name in cfg if name not in ('type', 'checkpoint')}
                load_backbone(self, cfg['checkpoint'], **options)
            else:
                initialize(self, cfg)
        self.is_init = True

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

        That is a table that follows from the size (:data:`DERIVED`), and, with fewer
        ``out_indices``, the output norms not returned and the stages behind the last one; without
        ``output_norms`` all of them.
        """
        last = max(self.out_indices)
        if re.fullmatch(DERIVED, name):
            return True
        if match := re.match(r'layers\.(\d+)\.(downsample\.)?', name):
            stage = int(match[1])
            return stage < NUM_STAGES and (stage > last or (stage == last and bool(match[2])))
        if match := re.match(r'extra_norms\.(\d+)\.', name):
            return int(match[1]) < NUM_STAGES and match[1] not in self.extra_norms
        return False

    def _before_loading(self, state_dict: dict, prefix: str, versions: dict, *_) -> None:
        names = {k[len(prefix) :]: k for k in state_dict if k.startswith(prefix)}
        given = {name: state_dict[key] for name, key in names.items()}
        self._loading = given, versions.get('source', 'the checkpoint')
        for name, key in names.items():
            if self.is_surplus(name):
                del state_dict[key]

    def _check_arguments(self, drop_path_rate: float) -> None:
        for cfg in _as_list(self.init_cfg):
            unknown = ', '.join(sorted(set(cfg) - set(PRETRAINED_KEYS)))
            if cfg.get('type') == 'Pretrained' and (unknown or not cfg.get('checkpoint')):
                raise ValueError(
                    f'init_cfg of type Pretrained with {unknown or "no checkpoint"}: it takes '
                    f'{", ".join(PRETRAINED_KEYS)}'
                )
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

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, *self.layers[: self.frozen_stages]]
        frozen += [n for i, n in self.extra_norms.items() if int(i) < self.frozen_stages]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)


def _as_list(init_cfg: dict | list[dict] | None) -> list[dict]:
    return [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []


def _after_loading(model: RMT, incompatible: tuple) -> None:
    """Refuse weights that do not fit where the loader would go on without them.

    That is mmengine's, behind ``load_checkpoint``, runners and inferencers. PyTorch's own
    ``load_state_dict`` says itself what does not fit, or was told not to.

    Raises:
        CheckpointError: a name is missing or unexplained, or a shape differs.
    """
    (state_dict, source), model._loading = model._loading, None
    if type(incompatible).__module__.startswith('mmengine.'):
        from .weights.match import check_part  # see init_weights

        check_part(model, state_dict, source)
