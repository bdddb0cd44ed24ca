"""Mixed precision: the same config with an accelerator and without."""

import pytest
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from torch import nn

from backbone.engine import amp


def wrapper(**changes: object) -> OptimWrapper:
    """What mmengine builds for a config's optim_wrapper."""
    cfg = dict(
        type='AmpWhereAvailable',
        dtype='float16',
        loss_scale=512.0,
        optimizer=dict(type='AdamW', lr=1e-4),
        clip_grad=dict(max_norm=1.0),
    )
    return build_optim_wrapper(nn.Linear(2, 2), {**cfg, **changes})


def test_without_a_gpu_it_is_float32_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amp, 'on_cpu', lambda: True)
    messages = []
    monkeypatch.setattr(amp, 'print_log', lambda text, *_: messages.append(text))
    built = wrapper()
    assert type(built) is OptimWrapper
    assert built.clip_grad_kwargs == {'max_norm': 1.0}
    assert messages == ['No GPU: training in float32 instead of float16.']


@pytest.mark.parametrize('scale', [512.0, 512])
def test_with_a_gpu_it_is_what_the_config_says(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amp, 'on_cpu', lambda: False)
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    built = wrapper(loss_scale=scale)
    assert type(built) is AmpOptimWrapper
    assert built.cast_dtype is torch.float16
    assert built._scale_update_param == 512.0
