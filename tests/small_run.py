"""A run of mmengine in milliseconds: a model of a few numbers, for tests of the runner."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

import backbone.engine  # noqa: F401  (registers the hooks)


@DATASETS.register_module()
class Numbers(Dataset):
    METAINFO = dict(classes=('a', 'b'))
    metainfo = METAINFO

    def __init__(self, root: str = '') -> None: ...

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.full((2,), float(index)))


class Trunk(nn.Module):
    """Publishes channels as a backbone does."""

    out_channels = (12, 24, 36, 48)

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)


@MODELS.register_module()
class SmallModel(BaseModel):
    def __init__(
        self, width: int = 2, neck: dict | None = None, decode_head: dict | None = None,
        auxiliary_head: dict | None = None, panoptic_head: dict | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone = Trunk()
        self.head = nn.Linear(width, 1)

    def forward(self, inputs: torch.Tensor, mode: str = 'tensor') -> torch.Tensor | dict:
        out = self.head(self.backbone.norm(self.backbone.linear(inputs)))
        return dict(loss=out.square().mean()) if mode == 'loss' else out


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes a runner most of its time: describing the machine."""
    monkeypatch.setattr(Runner, '_log_env', lambda *_: None)


def small_config(work_dir: Path, batch: int = 2, epochs: int = 2, **keys: object) -> Config:
    """A config whose training of ``epochs`` of 8 numbers takes milliseconds."""
    cfg = dict(
        model=dict(type='SmallModel'),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=batch,
            num_workers=0,
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='Numbers'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, end=3, by_epoch=False)],
        auto_scale_lr=dict(enable=True, base_batch_size=2),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', interval=1),
        ),
        randomness=dict(seed=0),
        default_scope='mmengine',
    )
    return Config({**cfg, **keys})
