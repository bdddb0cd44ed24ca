"""A small training for test_resume.py, as a script so that it can be killed.

    python resume_run.py WORK_DIR {iter,epoch}     dies in its fifth iteration

Writes one line an iteration to WORK_DIR/losses.txt. The order of the images, their augmentation
and drop path are all random.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from released_files import MINI
from torch.utils.data import Dataset

import backbone.engine  # noqa: F401  (registers the model and the hooks)


@DATASETS.register_module()
class Noise(Dataset):
    """Images that are known by their colour, with noise drawn each time."""

    METAINFO = dict(classes=('a', 'b'))
    metainfo = METAINFO

    def __len__(self):
        return 6

    def __getitem__(self, index):
        shift = torch.rand(1) + np.random.rand()
        image = torch.full((3, 32, 32), float(index)) + shift
        return dict(inputs=image, target=float(index))


@MODELS.register_module()
class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = MODELS.build(dict(type='RMT', arch=MINI, drop_path_rate=0.5))
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
        return dict(nothing=0)


class Record(Hook):
    """Writes each loss and learning rate at full precision; dies when told to."""

    def __init__(self, path, die_at):
        self.path, self.die_at = path, die_at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        rate = runner.optim_wrapper.get_lr()['lr'][0]
        smooth = runner.message_hub.get_scalar('train/loss').statistics('mean')
        line = [runner.iter, outputs['loss'].item().hex(), rate.hex(), float(smooth).hex()]
        line += data_batch['target'].tolist()
        with open(self.path, 'a') as file:
            print(*line, file=file)


def build(work_dir: Path, kind: str, resume=False, die_at=-1, seed=0) -> Runner:
    """A training of six iterations, ``kind`` 'iter' or 'epoch' based, saved after the third."""
    torch.set_num_threads(1)  # so that two processes compute the same to the last bit
    by_epoch = kind == 'epoch'
    loader = dict(
        batch_size=2,
        num_workers=0,
        collate_fn=dict(type='default_collate'),
        sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True),
        dataset=dict(type='Noise'),
    )
    return Runner(
        model=dict(type='Toy'),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1)
        if by_epoch
        else dict(by_epoch=False, max_iters=6, val_interval=3),
        val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
        val_cfg=dict(),
        val_evaluator=[Nothing()],
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2), clip_grad=dict(max_norm=1.0)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, end=4, by_epoch=False),
            dict(type='PolyLR', eta_min=0, power=0.9, begin=2, end=6, by_epoch=False),
        ],
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', by_epoch=by_epoch, interval=1 if by_epoch else 3
            ),
            logger=dict(type='LoggerHook', interval=1),
        ),
        custom_hooks=[
            dict(type='StrictLoadHook'),
            dict(type='SeedByIterationHook'),
            Record(work_dir / 'losses.txt', die_at),
        ],
        resume=resume,
        randomness=dict(seed=seed),
        default_scope='mmengine',
        experiment_name=f'{work_dir.name}_{resume}',
        log_level='ERROR',
    )


if __name__ == '__main__':
    build(Path(sys.argv[1]), sys.argv[2], die_at=4).train()
