"""The safe reader of weights behind every path of mmengine that reads them.

``load_from``, ``resume``, ``init_cfg`` Pretrained, ``init_detector``, inferencers.
"""

import os
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, CheckpointLoader

from ..weights.match import match_checkpoint
from ..weights.read import Checkpoint, CheckpointError, read_checkpoint


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Any = None) -> Checkpoint:
    return read_checkpoint(filename, map_location or 'cpu')


@CheckpointLoader.register_scheme(prefixes=['http://', 'https://'], force=True)
def load_from_http(filename: str, map_location: Any = None) -> Checkpoint:
    """Download once into torch's cache, then read like a local file."""
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    path = os.path.join(folder, os.path.basename(urlparse(filename).path) or 'unnamed')
    if is_main_process() and not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        try:
            torch.hub.download_url_to_file(filename, path, progress=os.isatty(2))
        except (URLError, OSError) as error:
            raise CheckpointError(f'{filename}: download failed ({error})') from error
    barrier()
    return read_checkpoint(path, map_location or 'cpu')


# names that mmengine looks up in a store or a list of addresses, and reads unsafely
_OTHER_SCHEMES = [r'(\S+\:)?s3://', r'(\S+\:)?petrel://', 'pavi://', 'modelzoo://', 'mmcls://']
_OTHER_SCHEMES += ['torchvision://', 'open-mmlab://', 'openmmlab://']


@CheckpointLoader.register_scheme(prefixes=_OTHER_SCHEMES, force=True)
def load_from_elsewhere(filename: str, map_location: Any = None) -> Checkpoint:
    raise CheckpointError(f'{filename}: not read safely; download the file and give its path')


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Makes the runner's ``load_from`` and ``resume`` complete or refused.

    Training may also start from a backbone file or from one made with ``--drop-head``; what the
    file has not then stays as initialised, and the log says so.
    """

    priority = 'VERY_HIGH'  # before hooks that copy the state dict, as EMAHook does

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        # mmengine says neither whether it resumes nor what it is about to run
        resuming, training = runner._resume, isinstance(runner._train_loop, BaseLoop)
        if resuming:
            _check_resumable(checkpoint)
        result = match_checkpoint(runner.model, checkpoint, training and not resuming)
        checkpoint['state_dict'] = result.state_dict


def _check_resumable(checkpoint: dict) -> None:
    source = getattr(checkpoint, 'source', 'the checkpoint')
    meta = checkpoint.get('meta')
    found = set(checkpoint) | set(meta if isinstance(meta, dict) else ())
    wanted = ('optimizer', 'param_schedulers', 'message_hub', 'epoch', 'iter')
    lacking = [name for name in wanted if name not in found]
    if lacking:
        raise CheckpointError(
            f'{source}: holds no training state ({", ".join(lacking)}), so it cannot be resumed; '
            'to start from its weights use load_from'
        )
