"""The table of RMT variants: what tells T, S, B and L apart stands here and only here.

A stage is one of the four resolutions (strides 4, 8, 16, 32); a tuple has one entry a stage.
"""

from dataclasses import dataclass, fields


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
            if channels % (2 * heads):
                raise ValueError(
                    f'arch: {channels} channels over {heads} heads: a head needs an even width, '
                    'its channels are turned in pairs'
                )


NUM_STAGES = 4

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
