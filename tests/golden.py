"""Golden features: weights drawn by name from seeds, and what the released model made of them.

``data/golden.npz`` holds, per variant, a sample of each output of the released implementation in
eval mode. The recipe draws every tensor from a generator seeded with the CRC of its released name,
so no weights file is needed to compare two implementations.
"""

import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / 'data' / 'golden.npz'
TOLERANCE = 1e-4
INPUT_SHAPES = {
    'tiny': (1, 3, 96, 160),
    'small': (1, 3, 96, 160),
    'base': (1, 3, 64, 64),
    'large': (1, 3, 64, 64),
}


def recipe_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor that the recipe gives to a parameter or buffer of this released name."""
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
        if 'q_proj' in name or 'k_proj' in name:
            value = 2 * value
    else:
        value = 1 + 0.1 * noise
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def recipe_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state dict for ``model`` by the recipe; counters keep their value."""
    return {
        name: tensor.clone()
        if name.endswith('num_batches_tracked')
        else recipe_tensor(name, tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
    }


def recipe_input(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(0).standard_normal(shape)).float()


def sample(feature: torch.Tensor, count: int) -> np.ndarray:
    """``count`` values spread evenly over the flattened feature."""
    flat = feature.detach().numpy().ravel()
    return flat[np.linspace(0, flat.size - 1, min(count, flat.size)).astype(np.int64)]


def golden_outputs(arch: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(shape, sampled values) of each of the four outputs of a variant."""
    with np.load(GOLDEN) as data:
        return [(data[f'{arch}|{i}|shape'], data[f'{arch}|{i}|sample']) for i in range(4)]
