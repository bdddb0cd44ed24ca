"""Golden features: weights drawn by name from seeds, and what the released models made of them.

``data/golden.npz`` holds, per network, a sample of each output of the released implementation
(github.com/qhfan/RMT at 32ea214) in eval mode, computed in float64; ``data/golden_ravlt.npz`` the
same of RAVLT (qhfan/RALA at a86314f) and MAViT (qhfan/MALA at 7114e63). The recipe draws every
tensor from a generator seeded with the CRC of its released name, so no weights file is needed to
compare two implementations. It keeps ``pos`` small: at full size it doubles the stream's variance
in every block, and what the last stages add is lost beside it.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from backbone import RAVLT
from backbone.ravlt import to_released

GOLDEN = Path(__file__).parent / 'data' / 'golden.npz'
GOLDEN_RAVLT = GOLDEN.with_name('golden_ravlt.npz')
NETWORKS = ('tiny', 'small', 'base', 'large', 'tiny_faint')
"""Sizes of RMT; ``faint`` has a stream of about 1e-3, in which LayerNorm's eps shows."""
INPUT_SHAPE = (1, 3, 96, 160)
RAVLT_NETWORKS = tuple(
    f'{family}_{arch}'
    for arch in ('tiny', 'small', 'base', 'large', 'tiny_faint')
    for family in ('ravlt', 'mavit')
)
"""Both families beside each other: their weights are the same."""
LIMIT = 5e-5
"""Of :func:`golden_error`; in float32 the released code itself is off by 1e-5."""
TOLERANCE = 1e-4
"""Absolute, of what reaches some units."""

FAINT = (
    r'patch_embed\.proj\.10\.(weight|bias)|'
    r'.*\.(retention\.out_proj|ffn\.fc2)\.(weight|bias)|'
    r'.*\.downsample\.(reduction\.bias|norm\.running_mean|norm\.bias)|'
    r'.*\.pos\.conv\.bias'
)
"""Whatever writes to the stream."""
FAINT_RAVLT = (
    r'patch_embed\.proj\.10\.(weight|bias)|.*\.downsample\.norm\.(weight|bias)|'
    r'.*\.gamma_[12]|.*\.pos\.bias'
)
NONE = r'(?!)'


def recipe_tensor(name: str, shape: tuple[int, ...], faint: str = NONE) -> torch.Tensor:
    """The tensor that the recipe gives to a parameter or buffer of this released name.

    Args:
        faint: pattern of the names that are a thousandth of it.
    """
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    noise = noise.astype(np.float32)
    if name.endswith('running_var'):
        value = 1 + 0.1 * np.abs(noise)
    elif name.endswith(('running_mean', 'bias')):
        value = 0.1 * noise
    elif 'gamma_' in name:
        value = 0.5 + 0.1 * noise
    elif len(shape) >= 2:
        value = noise / np.sqrt(np.prod(shape[1:]))
        if name.endswith(('q_proj.weight', 'k_proj.weight')):
            value = 2 * value
        if name.endswith('pos.conv.weight'):
            value = 0.1 * value
        if name.endswith('attn.qkvo.weight'):  # of q and k
            value[: len(value) // 2] *= 2
        if name.endswith('pos.weight'):
            value = 0.2 * value
    else:
        value = 1 + 0.1 * noise
    if re.fullmatch(faint, name):
        value = 1e-3 * value
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def recipe_state_dict(model: torch.nn.Module, faint: bool = False) -> dict[str, torch.Tensor]:
    """A state dict for ``model`` by the recipe, under released names; counters start at 0."""
    released, small = model.state_dict(), FAINT
    if isinstance(model, RAVLT):
        released, small = to_released(released), FAINT_RAVLT
    return {
        name: torch.zeros_like(tensor, device='cpu')
        if name.endswith('num_batches_tracked')
        else recipe_tensor(name, tuple(tensor.shape), small if faint else NONE)
        for name, tensor in released.items()
    }


def recipe_input(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(0).standard_normal(shape)).float()


def sample(feature: torch.Tensor, count: int) -> np.ndarray:
    """``count`` values spread evenly over the flattened feature."""
    flat = feature.detach().cpu().numpy().ravel()
    return flat[np.linspace(0, flat.size - 1, min(count, flat.size)).astype(np.int64)]


def golden_errors(features: Sequence[torch.Tensor], network: str) -> list[float]:
    """The largest difference to each output of the released model, in its standard deviations."""
    with np.load(golden_file(network)) as data:
        return [golden_error(feature, data, network, i) for i, feature in enumerate(features)]


def golden_file(network: str) -> Path:
    return GOLDEN_RAVLT if network in RAVLT_NETWORKS else GOLDEN


def golden_error(feature: torch.Tensor, data: Mapping, network: str, stage: int) -> float:
    """The same of one output; infinite if its shape is another."""
    values, shape, deviation = (
        data[f'{network}|{stage}|{what}'] for what in ('sample', 'shape', 'deviation')
    )
    if tuple(feature.shape) != tuple(shape):
        return float('inf')
    return float(np.abs(sample(feature, len(values)) - values).max() / deviation)
