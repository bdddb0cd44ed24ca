"""State dict -> file: clean, described, written whole or not at all."""

import datetime
import json
import os

import torch
from torch import Tensor

from ..variants import VARIANTS
from .layout import (
    BACKBONE_KINDS,
    CLASS_LAYER,
    Description,
    class_names,
    relpos_tables,
    unwrap,
)
from .read import (
    Checkpoint,
    CheckpointError,
    read_checkpoint,
    sha256_of,
    sha256_of_tensors,
)

LAYOUTS = ('pth', 'safetensors', 'released')


def class_layers(kept: dict[str, Tensor], description: Description, path: str) -> list[str]:
    names = [name for name in kept if CLASS_LAYER.match(name)]
    if not names:
        raise CheckpointError(f'{path}: {description}, has no class layers to drop')
    return names


def released_tables(kept: dict[str, Tensor], description: Description) -> dict[str, Tensor]:
    """The tables that the released code stores, under the file's prefix."""
    if not description.arch:
        raise CheckpointError('the released code has no RMT of this size')
    prefix = 'backbone.' if any(name.startswith('backbone.') for name in kept) else ''
    return {prefix + n: t for n, t in relpos_tables(VARIANTS[description.arch]).items()}


def describe_source(
    checkpoint: Checkpoint,
    description: Description,
    dropped_head: list[str],
    tensors: dict[str, Tensor],
    path: str,
) -> dict:
    """What the file is and where it comes from; plain data, so that it fits both formats."""
    old = checkpoint.get('meta') if isinstance(checkpoint.get('meta'), dict) else {}
    with open(path, 'rb') as file:
        source_sha256 = sha256_of(file)
    rmt = {
        'kind': description.kind,
        'arch': description.arch,
        'num_classes': description.num_classes,
        'source': os.path.basename(path),
        'source_sha256': source_sha256,
        'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        'tensors_sha256': sha256_of_tensors(tensors),
        'dropped_head': dropped_head,
    }
    epoch = checkpoint.get('epoch', old.get('epoch'))
    if isinstance(epoch, int):
        rmt['epoch'] = epoch
    names = class_names(old)
    return {'rmt': rmt, 'dataset_meta': {'classes': names}} if names else {'rmt': rmt}


def write_checkpoint(
    path: str, tensors: dict[str, Tensor], meta: dict, layout: str, kind: str
) -> None:
    """Write beside ``path``, read back, compare, and only then put it in place.

    Args:
        layout: one of :data:`LAYOUTS`. 'released' files of backbones have their weights under
            'model', all else has them under 'state_dict'.
        kind: a key of :data:`~backbone.weights.layout.KINDS`.
    """
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    beside = f'{path}.{os.getpid()}.partial'
    try:
        if layout == 'safetensors':
            from safetensors.torch import save_file

            save_file(tensors, beside, metadata={'format': 'pt', 'meta': json.dumps(meta)})
        else:
            key = 'model' if layout == 'released' and kind in BACKBONE_KINDS else 'state_dict'
            torch.save({'meta': meta, key: tensors}, beside)
        again = unwrap(read_checkpoint(beside), path)
        if sha256_of_tensors(again) != meta['rmt']['tensors_sha256']:
            raise CheckpointError(f'{path}: reads back differently from what was written')
        os.replace(beside, path)
    except ImportError as error:
        raise CheckpointError(f'{path}: needs `pip install safetensors`') from error
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(f'{path}: cannot be written ({error})') from error
    finally:
        if os.path.exists(beside):
            os.unlink(beside)
