"""The safe reader of weights behind every path of mmengine that reads them.

``load_from``, ``resume``, ``init_detector``, inferencers, and what other models are loaded from.
"""

import os
import tempfile
from typing import Any

from mmengine.fileio import get_file_backend
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import (
    BaseLoop,
    CheckpointLoader,
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)

from ..weights.checkpoint import Checkpoint, CheckpointError
from ..weights.match import match_checkpoint
from ..weights.read import read_checkpoint


@CheckpointLoader.register_scheme(prefixes=['', 'http://', 'https://'], force=True)
def load_from_local(filename: str, map_location: Any = None) -> Checkpoint:
    return read_checkpoint(filename, map_location or 'cpu')


# --- names that mmengine looks up, for other models -----------------------------------------------


@CheckpointLoader.register_scheme(prefixes=['torchvision://', 'modelzoo://'], force=True)
def load_from_torchvision(filename: str, map_location: Any = None) -> Checkpoint:
    return load_from_local(_looked_up(filename, get_torchvision_models()), map_location)


@CheckpointLoader.register_scheme(prefixes=['open-mmlab://', 'openmmlab://'], force=True)
def load_from_openmmlab(filename: str, map_location: Any = None) -> Checkpoint:
    names = get_external_models()
    renamed = get_deprecated_model_names()
    names |= {old: names[new] for old, new in renamed.items() if new in names}
    place = _looked_up(filename, names)
    if '://' not in place:
        cache = os.environ.get('XDG_CACHE_HOME', '~/.cache')
        home = os.environ.get('MMENGINE_HOME', os.path.join(cache, 'mmengine'))
        place = os.path.join(home, place)
    return load_from_local(place, map_location)


@CheckpointLoader.register_scheme(prefixes='mmcls://', force=True)
def load_from_mmcls(filename: str, map_location: Any = None) -> Checkpoint:
    checkpoint = load_from_local(_looked_up(filename, get_mmcls_models()), map_location)
    weights = checkpoint.get('state_dict', checkpoint)
    prefix = 'backbone.'
    kept = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    return Checkpoint({'state_dict': kept}, checkpoint.source)


def _looked_up(filename: str, places: dict[str, str]) -> str:
    name = filename.split('://', 1)[1]
    if name not in places:
        raise CheckpointError(f'{filename}: mmengine knows no weights of this name')
    return places[name]


@CheckpointLoader.register_scheme(prefixes=[r'(\S+\:)?s3://', r'(\S+\:)?petrel://'], force=True)
def load_from_ceph(filename: str, map_location: Any = None) -> Checkpoint:
    content = get_file_backend(filename, backend_args={'backend': 'petrel'}).get(filename)
    with tempfile.NamedTemporaryFile(suffix='.pth') as file:
        file.write(content)
        file.flush()
        return read_checkpoint(file.name, map_location or 'cpu', source=filename)


@CheckpointLoader.register_scheme(prefixes='pavi://', force=True)
def load_from_pavi(filename: str, map_location: Any = None) -> Checkpoint:
    raise CheckpointError(f'{filename}: not read from there; download the file and give its path')


# --- complete or refused --------------------------------------------------------------------------


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Makes the runner's ``load_from`` and ``resume`` complete or refused, heads too.

    Training may also start from a backbone file or from one made with ``--drop-head``; what the
    file has not then stays as initialised, and the log says so.

    Args:
        own_classes: training starts from a detector or segmentor of other classes: its layers whose
            size is the class count are left out and start anew, and the log says so.
    """

    priority = 'VERY_HIGH'  # before hooks that copy the state dict, as EMAHook does

    def __init__(self, own_classes: bool = False) -> None:
        self.own_classes = own_classes

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        # mmengine says neither whether it resumes nor what it is about to run. In a test the loop
        # of the training is built too where a hook asks for it (EarlyStoppingHook), the optimizer
        # never is.
        built = isinstance(runner._train_loop, BaseLoop)
        resuming, training = runner._resume, built and not _is_config(runner.optim_wrapper)
        if resuming:
            _check_resumable(checkpoint)
        config = runner.cfg.filename
        result = match_checkpoint(
            runner.model, checkpoint, training and not resuming, config, self.own_classes
        )
        checkpoint['state_dict'] = result.state_dict


def _is_config(part: object) -> bool:
    """Whether a part of a runner is not built yet."""
    return part is None or isinstance(part, dict)


_TRAINING_STATE = {
    'optimizer': dict,
    'param_schedulers': (dict, list),
    'message_hub': dict,
    'epoch': int,
    'iter': int,
}


def _check_resumable(checkpoint: dict) -> None:
    source = getattr(checkpoint, 'source', 'the checkpoint')
    found = {**checkpoint, **checkpoint.get('meta', {})}
    wrong = [n for n, kind in _TRAINING_STATE.items() if not isinstance(found.get(n), kind)]
    hub = found.get('message_hub')
    parts = ('log_scalars', 'runtime_info', 'resumed_keys')
    if isinstance(hub, dict) and not all(isinstance(hub.get(part), dict) for part in parts):
        wrong.append('message_hub')
    if wrong:
        raise CheckpointError(
            f'{source}: holds no training state ({", ".join(wrong)}), so it cannot be resumed; '
            'to start from its weights use load_from'
        )
