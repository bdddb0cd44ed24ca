"""`--bf16`: what takes most of a prediction's time, backbone and neck, in bfloat16.

Heads and post-processing stay in float32: on a CPU mmcv's operators (RoIAlign, NMS) know nothing
else, and scores that are nearly equal stay in their order. So do the sums to which each block of
the backbone adds: what 8 bits of them lose in every block costs AP, and adding takes hardly time.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from backbone.layers import Downsample, PatchEmbed

CPUINFO = Path('/proc/cpuinfo')
INSTRUCTIONS = ('avx512_bf16', 'amx_bf16', 'bf16')  # Intel and AMD, Intel, ARM
KEYS = ('flags', 'Features')  # of x86, of ARM
FIRST_GPU = (8, 0)  # compute capability: A100 and later


def add_bf16(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--bf16', action='store_true', help='backbone and neck in bfloat16')


def use_bfloat16(model: nn.Module, warn: Callable[[str], None]) -> None:
    """Let each detector or segmentor in ``model`` make its features in bfloat16.

    Args:
        warn: told in one line where that takes no less time.
    """
    device = next(model.parameters()).device
    if why := reason_against(device):
        warn(f'--bf16: {why}, so it takes no less time than float32')
    for module in model.modules():
        if hasattr(module, 'extract_feat') and hasattr(module, 'backbone'):
            module.extract_feat = _in_bfloat16(module.extract_feat, device.type)
        if isinstance(module, (PatchEmbed, Downsample)):  # the sums of a stage begin here
            module.register_forward_hook(lambda module, inputs, output: output.float())


def _in_bfloat16(extract: Callable, device_type: str) -> Callable:
    @functools.wraps(extract)
    def extract_feat(*args: object, **options: object) -> object:
        with torch.autocast(device_type, torch.bfloat16):
            features = extract(*args, **options)
        return _in_float32(features)

    return extract_feat


def _in_float32(features: object) -> object:
    """Tensors, also in lists and tuples, from 16 bits; anything else as it is."""
    if isinstance(features, (list, tuple)):
        return type(features)(map(_in_float32, features))
    return features.float() if isinstance(features, Tensor) else features


def reason_against(device: torch.device) -> str:
    """Why bfloat16 is not faster on a device; empty where it is."""
    if device.type == 'cuda' and torch.cuda.get_device_capability(device) < FIRST_GPU:
        return 'this GPU has no instructions for bfloat16'
    if device.type == 'cpu' and not set(INSTRUCTIONS) & _flags():
        return f'this processor has no instructions for bfloat16 ({", ".join(INSTRUCTIONS)})'
    return ''


def _flags() -> set[str]:
    """What Linux says a processor can; nothing on another system."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    found = (line.partition(':') for line in lines)
    return {flag for key, _, value in found if key.strip() in KEYS for flag in value.split()}
