"""What the backbones of every family share: a stem, four stages, one norm an output, NCHW features.

A family (:mod:`backbone.rmt`, :mod:`backbone.ravlt`, :mod:`backbone.mavit`) adds its table of sizes
and its stages. A stage is one of the four resolutions; a tuple has one entry a stage.

The way of an image: (B, 3, H, W) -> stem (B, H/4, W/4, C1) -> stage i (B, H/2^(i+2), W/2^(i+2), Ci)
-> [norm -> feature i (B, Ci, H/2^(i+2), W/2^(i+2))] -> downsample -> stage i + 1. Sizes round up.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, get_origin

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .attention import head_width
from .kernels.compiled import let_inductor_order_symbols
from .kernels.layers import accelerate
from .layers import Block, Downsample, GridAttention, PatchEmbed, Stage

NUM_STAGES = 4

PRETRAINED_KEYS = ('type', 'checkpoint', 'key', 'prefix', 'map_location')
"""What an ``init_cfg`` of type Pretrained may say."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of a network: what the table of every family says.

    Attributes:
        channels: width of each stage.
        depths: number of blocks in each stage.
        heads: attention heads of each stage; must divide its channels into even parts.
        ffn_ratio: hidden width of the feed-forward network over the stage's width.
        layer_scale: initial value of the residual scales, None where the stage has none.
        drop_path: stochastic depth rate of the last block as used downstream (the first has 0).
        letter: the paper's name ("T"); empty for a custom size.
        released_name: the name in the released code.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    ffn_ratio: tuple[float, ...]
    layer_scale: tuple[float | None, ...] = (None, None, None, None)
    drop_path: float = 0.1
    letter: str = ''
    released_name: str = ''

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # configs write lists
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            one_a_stage = isinstance(value, tuple) and len(value) == NUM_STAGES
            if get_origin(field.type) is tuple and not one_a_stage:
                raise ValueError(
                    f'arch: {field.name} needs {NUM_STAGES} entries, one a stage: {value!r}'
                )
        for channels, heads in zip(self.channels, self.heads, strict=True):
            head_width(channels, heads)


def size_of(arch: str | dict, sizes: Mapping[str, Size], kind: type[Size]) -> Size:
    """Look up a size by name, or make one from a dict of the fields of ``kind``.

    Raises:
        ValueError: unknown name, missing or unknown field, or sizes that do not fit together.
    """
    if isinstance(arch, str):
        if arch not in sizes:
            raise ValueError(
                f'arch {arch!r} is unknown; choose from {", ".join(sizes)}, or give a dict'
            )
        return sizes[arch]
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(arch) - known)
    if unknown:
        raise ValueError(
            f'arch: unknown {", ".join(unknown)}; a custom size has {", ".join(sorted(known))}'
        )
    try:
        return kind(**arch)
    except TypeError as error:
        raise ValueError(f'arch: {error}') from error


class Network(nn.Module):
    """A hierarchical backbone with features at strides 4, 8, 16 and 32.

    Args:
        arch: 'tiny', 'small', 'base' or 'large' (the paper's T, S, B, L), or a dict with the fields
            of the family's table.
        out_indices: stages to return, ascending. Stages behind the last one are not built.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0; None takes the
            variant's.
        frozen_stages: -1 trains everything, 0 freezes the stem, k the stem and the first k stages.
        norm_cfg: the norm of stem and downsamples, ``dict(type='BN')`` or ``dict(type='SyncBN')``.
        norm_eval: keep those norms' running statistics fixed in training. Off in the published
            training.
        with_cp: recompute each block in the backward pass instead of keeping its activations.
        attention: how attention is computed, one of the family's names. With 'naive' all other
            layers are PyTorch's own as well: the formula as it stands.
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

    sizes: ClassVar[Mapping[str, Size]]
    size_type: ClassVar[type[Size]]
    stem_strides: ClassVar[tuple[int, int, int, int]]
    output_eps: ClassVar[float]
    """Of the output norms."""
    derived: ClassVar[str]
    """Pattern of the tables that follow from the size: released files store them, a model here
    makes them."""

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
        variant = size_of(arch, self.sizes, self.size_type)
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

        self.patch_embed = PatchEmbed(variant.channels[0], norm_cfg, self.stem_strides)
        # over the blocks of all four stages, also where the last stages are not built
        num_blocks = sum(variant.depths)
        rates = [rate * i / max(num_blocks - 1, 1) for i in range(num_blocks)]
        self.layers = nn.ModuleList()
        for i in range(num_stages):
            first = sum(variant.depths[:i])
            blocks = [self._block(i, rates[first + j]) for j in range(variant.depths[i])]
            downsample = None
            if i < num_stages - 1:
                downsample = Downsample(variant.channels[i], variant.channels[i + 1], norm_cfg)
            self.layers.append(Stage(blocks, self._attention(i, attention), downsample, with_cp))
        # keyed by stage, so that the names do not depend on which stages are returned
        normed = self.out_indices if output_norms else ()
        self.extra_norms = nn.ModuleDict(
            {str(i): nn.LayerNorm(variant.channels[i], eps=self.output_eps) for i in normed}
        )
        if attention != 'naive':
            accelerate(self)
        self._begin()
        self._freeze()
        self._register_load_state_dict_pre_hook(self._before_loading)
        self.register_load_state_dict_post_hook(_after_loading)

    # --- a family's own --------------------------------------------------------------------------

    def _block(self, stage: int, drop_path: float) -> Block:
        """A block of a stage."""
        raise NotImplementedError

    def _attention(self, stage: int, name: str) -> GridAttention:
        """The attention that the blocks of a stage share, computed as ``name`` says."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Give all layers the weights that training begins with."""
        raise NotImplementedError

    @staticmethod
    def from_released(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict with released names and shapes, in ours; what is ours stays as it is."""
        return state_dict

    # --- the passes ------------------------------------------------------------------------------

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

    def train(self, mode: bool = True) -> 'Network':
        """Switch the mode; frozen stages, and with ``norm_eval`` all norms, stay in eval mode."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    # --- weights ---------------------------------------------------------------------------------

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

    def is_surplus(self, name: str) -> bool:
        """Whether a released file's tensor, under our name, rightly has no place here.

        That is a table that follows from the size (``derived``), and, with fewer ``out_indices``,
        the output norms not returned and the stages behind the last one; without ``output_norms``
        all of them.
        """
        last = max(self.out_indices)
        if re.fullmatch(self.derived, name):
            return True
        if match := re.match(r'layers\.(\d+)\.(downsample\.)?', name):
            stage = int(match[1])
            return stage < NUM_STAGES and (stage > last or (stage == last and bool(match[2])))
        if match := re.match(r'extra_norms\.(\d+)\.', name):
            return int(match[1]) < NUM_STAGES and match[1] not in self.extra_norms
        return False

    def _before_loading(self, state_dict: dict, prefix: str, versions: dict, *_) -> None:
        names = [name for name in state_dict if name.startswith(prefix)]
        given = {name[len(prefix) :]: state_dict.pop(name) for name in names}
        given = self.from_released(given)
        self._loading = given, versions.get('source', 'the checkpoint'), versions.get('family')
        for name, tensor in given.items():
            if not self.is_surplus(name):
                state_dict[prefix + name] = tensor

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


def _after_loading(model: Network, incompatible: tuple) -> None:
    """Refuse weights that do not fit where the loader would go on without them.

    That is mmengine's, behind ``load_checkpoint``, runners and inferencers. PyTorch's own
    ``load_state_dict`` says itself what does not fit, or was told not to.

    Raises:
        CheckpointError: a name is missing or unexplained, or a shape differs.
    """
    loading, model._loading = model._loading, None
    if type(incompatible).__module__.startswith('mmengine.'):
        from .weights.match import check_part  # see init_weights

        check_part(model, *loading)
