"""State dict -> file: clean, described, written whole or not at all."""

import datetime
import json
import os

import torch
from torch import Tensor

from .checkpoint import Checkpoint, CheckpointError, class_names, meta_in, own_meta
from .families import PREFIX
from .fetch import sha256_of
from .layout import Description
from .read import read_checkpoint, sha256_of_tensors, state_dict_in

LAYOUTS = ('pth', 'safetensors', 'released')


def class_layers(kept: dict[str, Tensor], description: Description, path: str) -> list[str]:
    """Names of the layers whose size is the class count.

    Raises:
        CheckpointError: there is none.
    """
    names = [name for name in kept if description.is_class_layer(name)]
    if not names:
        raise CheckpointError(f'{path}: {description}, has no class layers to drop')
    return names


def released_tables(kept: dict[str, Tensor], description: Description) -> dict[str, Tensor]:
    """The tables that the released code stores, under the file's prefix.

    Raises:
        CheckpointError: the backbone is of a size that the released code does not know.
    """
    family, variant = description.family, description.variant
    if variant is None:
        raise CheckpointError(f'the released code has no {family.name or "backbone"} of this size')
    prefix = PREFIX if any(name.startswith(PREFIX) for name in kept) else ''
    return {prefix + name: table for name, table in family.tables(variant).items()}


def describe_source(
    checkpoint: Checkpoint,
    description: Description,
    dropped_head: list[str],
    tensors: dict[str, Tensor],
    path: str,
) -> dict:
    """What the file is and where it comes from; plain data, so that it fits both formats."""
    old = meta_in(checkpoint)
    with open(path, 'rb') as file:
        source_sha256 = sha256_of(file)
    rmt = {'family': description.told} if description.told else {}
    rmt |= {
        'kind': description.kind,
        'arch': description.arch,
        'num_classes': description.num_classes,
        'source': os.path.basename(path),
        'source_sha256': source_sha256,
        'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        'tensors_sha256': sha256_of_tensors(tensors),
        'dropped_head': dropped_head,
    }
    rmt |= progress(checkpoint)
    names = class_names(old)
    return {'rmt': rmt, 'dataset_meta': {'classes': names}} if names else {'rmt': rmt}


def progress(checkpoint: Checkpoint) -> dict[str, int]:
    """How long it was trained: 'epoch' and 'iter', as far as the file says it.

    mmengine writes an epoch of 0 where a run is counted in iterations.
    """
    places = (checkpoint, meta_in(checkpoint), own_meta(checkpoint))
    found = {
        name: next((place[name] for place in places if type(place.get(name)) is int), None)
        for name in ('epoch', 'iter')
    }
    if found['epoch'] == 0 and found['iter']:
        found['epoch'] = None
    return {name: number for name, number in found.items() if number is not None}


def write_checkpoint(
    path: str, tensors: dict[str, Tensor], meta: dict, layout: str, description: Description
) -> None:
    """Write beside ``path``, read back, compare, and only then put it in place.

    Args:
        layout: one of :data:`LAYOUTS`. 'released' files of backbones have their weights under
            'model', all else has them under 'state_dict'.
        description: what the tensors are.
    """
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    beside = f'{path}.{os.getpid()}.partial'
    try:
        if layout == 'safetensors':
            from safetensors.torch import save_file

            save_file(tensors, beside, metadata={'format': 'pt', 'meta': json.dumps(meta)})
        else:
            key = 'model' if layout == 'released' and description.is_backbone else 'state_dict'
            torch.save({'meta': meta, key: tensors}, beside)
        again = state_dict_in(read_checkpoint(beside, source=path), path)
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
