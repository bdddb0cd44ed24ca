"""What the kernels of :mod:`.triton_attention` are compiled for: tiles by GPU, width and dtype."""

from functools import cache
from typing import NamedTuple

import torch

from .triton_attention import PAD

WHOLE, ROWS, COLUMNS = range(3)
"""A place attends to all places, to those of its row, of its column."""


class Tile(NamedTuple):
    """M queries and N keys at once, by how many warps, loads how many tiles ahead.

    Forward and the gradient of the queries take M = PAD: they fill whole rows of sums.
    """

    M: int
    N: int
    num_warps: int
    num_stages: int


HALF = {  # by kernel and D at most: what needs the fewest instructions and spills no register
    'forward': {128: Tile(64, 64, 4, 2)},
    'query': {64: Tile(64, 64, 4, 2), 128: Tile(64, 64, 8, 2)},
    'key': {32: Tile(64, 64, 4, 2), 64: Tile(32, 64, 4, 2), 128: Tile(32, 64, 8, 1)},
}
FLOAT = {  # products by FMA, whose operands take many registers
    'forward': {32: Tile(64, 32, 4, 1), 128: Tile(64, 32, 8, 1)},
    'query': {32: Tile(64, 32, 8, 1), 128: Tile(64, 16, 8, 1)},
    'key': {64: Tile(32, 64, 8, 1), 128: Tile(16, 64, 8, 1)},
}
TF32 = {
    'forward': FLOAT['forward'] | {32: Tile(64, 32, 4, 2)},
    'query': FLOAT['query'] | {32: Tile(64, 64, 4, 2)},
    'key': FLOAT['key'] | {32: Tile(32, 64, 4, 2)},
}
SMALL = {'forward': Tile(64, 32, 2, 2), 'query': Tile(64, 32, 2, 2), 'key': Tile(32, 64, 2, 2)}
"""Two warps, to which Triton gives no tensor memory: the way there and back takes more instructions
than it saves where heads are as narrow as RMT's."""

TILES = {  # by the least compute capability, 80 for 8.0
    80: dict(half=HALF, tf32=TF32, float=FLOAT),
    100: dict(  # B200 and its kin: tensor memory
        half={kernel: HALF[kernel] | {32: small} for kernel, small in SMALL.items()},
        tf32={
            kernel: TF32[kernel] | {32 if kernel == 'forward' else 16: small}
            for kernel, small in SMALL.items()
        },
        float=FLOAT,
    ),
    120: dict(  # RTX 50 and its kin
        half=HALF,
        tf32=TF32 | {'forward': TF32['forward'] | {32: Tile(64, 64, 4, 2)}},
        float=FLOAT,
    ),
}


def tile(kernel: str, dtype: torch.dtype, precision: str, D: int, capability: int) -> Tile:
    """The tile of a kernel for a width, found by counting (docs/performance.md)."""
    tables = TILES[max(least for least in TILES if least <= capability)]
    how = 'half' if dtype != torch.float32 else 'tf32' if precision == 'tf32' else 'float'
    tiles = tables[how][kernel]
    return tiles[min(widest for widest in tiles if widest >= D)]


@cache
def capability_of(device: torch.device) -> int:
    """Compute capability, 80 for 8.0; the least of the table where there is no GPU."""
    if device.type != 'cuda':
        return min(TILES)
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def precision_of(dtype: torch.dtype, interpreted: bool) -> str:
    """How float32 is multiplied, as PyTorch's own products are allowed to; others have one way."""
    if dtype == torch.float32:
        return 'tf32' if _tf32_is_allowed() else 'ieee'
    return 'exact' if interpreted and dtype == torch.bfloat16 else 'ieee'


def _tf32_is_allowed() -> bool:
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, 'fp32_precision'):  # since torch 2.9; the older name may then refuse
        return matmul.fp32_precision == 'tf32'
    return matmul.allow_tf32


def filled_up(d: int) -> int:
    """D: the power of two that d channels are computed as; a tensor core takes no fewer than 16."""
    return max(16, 1 << (d - 1).bit_length())


def constants(
    kernel: str,
    d: int,
    unit: int,
    dtype: torch.dtype,
    mode: int,
    precision: str,
    capability: int,
) -> dict[str, int | str | bool]:
    """What a kernel of attention is compiled for. No size of an image is among it."""
    D = filled_up(d)
    return dict(
        **({} if kernel == 'forward' else dict(ADD=mode == ROWS, TURN=mode != COLUMNS)),
        d=d,
        D=D,
        UNIT=unit,
        PAD=PAD,
        WHOLE=mode == WHOLE,
        PRECISION=precision,
        **tile(kernel, dtype, precision, D, capability)._asdict(),
    )
