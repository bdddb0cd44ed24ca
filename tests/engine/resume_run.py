"""A small training for tests that kill it, or that compare processes.

One line an iteration goes to WORK_DIR/losses_RANK.txt. The order of the images, their augmentation
and drop path are all random.
"""

import os
import signal
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from released_files import MINI
from torch.utils.data import Dataset

from backbone.engine import PortableRunner

KINDS = ('iter', 'epoch')


@DATASETS.register_module()
class Noise(Dataset):
    """Images that are known by their colour, with noise drawn each time; six a process."""

    METAINFO = dict(classes=('a', 'b'))
    metainfo = METAINFO

    def __len__(self):
        return 6 * int(os.environ.get('WORLD_SIZE', 1))

    def __getitem__(self, index):
        shift = torch.rand(1) + np.random.rand()
        image = torch.full((3, 32, 32), float(index)) + shift
        return dict(inputs=image, target=float(index))


@MODELS.register_module()
class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = MODELS.build(
            dict(type='RMT', arch=MINI, out_indices=(3,), drop_path_rate=0.5)
        )
        self.head = torch.nn.Linear(48, 1)

    def forward(self, inputs, target, mode='tensor'):
        out = self.head(self.backbone(inputs)[-1].mean((2, 3)))[:, 0]
        if mode == 'predict':
            return [out]
        if mode == 'loss':
            return dict(loss=(out - target).square().mean())
        return out


class Nothing(BaseMetric):
    """Validation that draws random numbers, as a model's may."""

    default_prefix = 'noise'

    def process(self, *_):
        self.results.append(torch.rand(1))

    def compute_metrics(self, _):
        self.times = getattr(self, 'times', 0) + 1
        return dict(nothing=self.times)


class Record(Hook):
    """Writes each loss and learning rate at full precision; the last rank dies when told to."""

    def __init__(self, folder, die_at):
        self.path, self.die_at = folder / f'losses_{get_rank()}.txt', die_at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.die_at and runner.rank == runner.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        rate = runner.optim_wrapper.get_lr()['lr'][0]
        smooth = runner.message_hub.get_scalar('train/loss').statistics('mean')
        line = [runner.iter, outputs['loss'].item().hex(), rate.hex(), float(smooth).hex()]
        line += data_batch['target'].tolist()
        with open(self.path, 'a') as file:
            print(*line, file=file)


def build(work_dir: Path, kind: str, workers=0, resume=False, die_at=-1, seed=0, **checkpoint):
    """A training of six iterations, ``kind`` 'iter' or 'epoch' based, saved after the third."""
    by_epoch = kind == 'epoch'
    loader = dict(
        batch_size=2,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=dict(type='default_collate'),
        sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True),
        dataset=dict(type='Noise'),
    )
    ordered = dict(type='DefaultSampler', shuffle=False)
    evaluated = dict(num_workers=0, persistent_workers=False, sampler=ordered)
    return PortableRunner(
        model=dict(type='Toy'),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1)
        if by_epoch
        else dict(by_epoch=False, max_iters=6, val_interval=3),
        val_dataloader={**loader, **evaluated},
        val_cfg=dict(),
        val_evaluator=[Nothing()],
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2), clip_grad=dict(max_norm=1.0)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, end=4, by_epoch=False),
            dict(type='PolyLR', eta_min=0, power=0.9, begin=2, end=6, by_epoch=False),
        ],
        default_hooks=dict(
            checkpoint=dict(
                type='WholeCheckpointHook',
                by_epoch=by_epoch,
                interval=1 if by_epoch else 3,
                **checkpoint,
            ),
            logger=dict(type='LoggerHook', interval=1),
        ),
        custom_hooks=[
            dict(type='StrictLoadHook'),
            dict(type='SeedByIterationHook'),
            dict(type='StopAtInvalidLossHook'),
            dict(type=Record, folder=work_dir, die_at=die_at),
        ],
        resume=resume,
        launcher='pytorch' if 'RANK' in os.environ else 'none',
        randomness=dict(seed=seed),
        default_scope='mmengine',
        experiment_name=f'{work_dir.name}_{resume}',
        log_level='ERROR',
    )


def train(*args: object) -> None:
    build(*args).train()


def lines(work_dir: Path, rank: int = 0) -> list[str]:
    return (work_dir / f'losses_{rank}.txt').read_text().splitlines()
