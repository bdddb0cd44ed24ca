"""State dict -> model, completely or not at all.

mmengine loads with ``strict=False``: what does not fit stays random, with a warning at most. Here
every tensor of the model comes from the file, and every tensor of the file goes to the model or
is named as dropped; anything else raises :class:`CheckpointError`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from .layout import (
    BACKBONE_KINDS,
    KINDS,
    Description,
    describe,
    preview,
    relpos_tables,
    split_backbone,
    unwrap,
)
from .read import Checkpoint, CheckpointError, read_checkpoint

__all__ = ['CheckpointError', 'fit', 'load_backbone', 'load_model']


@dataclass(frozen=True)
class Fit:
    """A state dict that fits a model exactly, and what was done to the file's for that.

    Attributes:
        state_dict: every tensor the model asks for.
        dropped: names in the file that the model rightly has no place for.
        filled: names not in the file, which keep the model's own initial values.
    """

    state_dict: dict[str, Tensor]
    dropped: list[str]
    filled: list[str]

    def __str__(self) -> str:
        parts = [f'{len(self.state_dict) - len(self.filled)} tensors loaded']
        if self.dropped:
            parts.append(f'{len(self.dropped)} dropped ({preview(self.dropped)})')
        if self.filled:
            parts.append(f'{len(self.filled)} as initialised ({preview(self.filled)})')
        return ', '.join(parts)


def load_backbone(model: nn.Module, file: str, key: str | None = None) -> Fit:
    """Load an RMT backbone from a file of any released kind: ImageNet, detector, segmentor.

    Output norms that the file has not (ImageNet files have none) stay as initialised.

    Args:
        key: where in the file, e.g. 'model_ema'; by default 'state_dict', 'model', or the file.

    Raises:
        CheckpointError: see :func:`fit`.
    """
    state_dict = unwrap(read_checkpoint(file), file, key)
    description = describe(state_dict)
    kept, dropped = split_backbone(state_dict)
    result = fit(model, kept, file, lambda name: name.startswith('extra_norms.'))
    model.load_state_dict(result.state_dict)
    result = Fit(result.state_dict, dropped + result.dropped, result.filled)
    print_log(f'{file}: {description}: {result}', 'current')
    return result


def load_model(model: nn.Module, file: str) -> Checkpoint:
    """Load a whole detector or segmentor for inference; the result also has the file's 'meta'.

    Raises:
        CheckpointError: see :func:`fit`.
    """
    checkpoint = read_checkpoint(file)
    result = fit_checkpoint(model, checkpoint, training=False)
    model.load_state_dict(result.state_dict)
    return checkpoint


def fit_checkpoint(model: nn.Module, checkpoint: dict, training: bool) -> Fit:
    """Fit a checkpoint to a detector or segmentor; heads may be missing only before training."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    source = getattr(checkpoint, 'source', 'the checkpoint')
    state_dict = unwrap(checkpoint, source)
    description, ours = describe(state_dict), describe(model.state_dict())
    headless = set(_own_meta(checkpoint).get('dropped_head', ()))
    dropped = []
    if description.kind in BACKBONE_KINDS and ours.kind not in BACKBONE_KINDS:
        state_dict, dropped = split_backbone(state_dict)
        state_dict = {f'backbone.{name}': tensor for name, tensor in state_dict.items()}
        headless = {n for n in model.state_dict() if not n.startswith('backbone.')}
        headless |= {n for n in model.state_dict() if n.startswith('backbone.extra_norms.')}
    if headless and not training:
        raise CheckpointError(
            f'{source}: an {description}, without the heads that the config needs; '
            'train from it (load_from), or give a trained file'
        )
    result = fit(model, state_dict, source, headless.__contains__)
    result = Fit(result.state_dict, dropped + result.dropped, result.filled)
    print_log(f'{source}: {description}: {result}', 'current')
    return result


def fit(
    model: nn.Module, state_dict: dict[str, Tensor], source: str, optional: Callable[[str], bool]
) -> Fit:
    """Hold a state dict against a model, name by name.

    Args:
        source: the file, for messages.
        optional: whether a parameter of this name may be missing, keeping its initial value.

    Raises:
        CheckpointError: a name is missing or unexplained, a shape or type differs, or a stored
            table says that the weights were made for another attention.
    """
    expected = model.state_dict()
    dropped = [name for name in state_dict if name not in expected and _is_surplus(model, name)]
    missing = [name for name in expected if name not in state_dict]
    # a batch norm's counter enters no result
    filled = [n for n in missing if n.endswith('.num_batches_tracked') or optional(n)]
    problems = {
        'missing': [name for name in missing if name not in filled],
        'unexplained': [n for n in state_dict if n not in expected and n not in dropped],
        'of another shape': [
            f'{name} {_shape(tensor)} in the file, {_shape(expected[name])} in the model'
            for name, tensor in state_dict.items()
            if name in expected and tensor.shape != expected[name].shape
        ],
        'of another type': [
            f'{name} {tensor.dtype} in the file, {expected[name].dtype} in the model'
            for name, tensor in state_dict.items()
            if name in expected and not _convertible(tensor.dtype, expected[name].dtype)
        ],
    }
    problems = {what: names for what, names in problems.items() if names}
    if problems:
        cause = _likely_cause(describe(state_dict), describe(expected), set(problems))
        lists = '; '.join(f'{len(n)} {what}: {preview(n)}' for what, n in problems.items())
        raise CheckpointError(f'{source}: {cause.format(source=source)} ({lists})')
    _check_tables(model, state_dict, source)
    return Fit({n: state_dict.get(n, expected[n]) for n in expected}, dropped, filled)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _convertible(theirs: torch.dtype, ours: torch.dtype) -> bool:
    return (
        theirs.is_floating_point == ours.is_floating_point and theirs.is_complex == ours.is_complex
    )


def _likely_cause(theirs: Description, ours: Description, problems: set[str]) -> str:
    if not theirs.size:
        return 'these are not RMT weights'
    if theirs.size != ours.size:
        return f'these are {theirs.size} weights; the config builds {ours.size or "no RMT"}'
    if theirs.kind != ours.kind and ours.kind not in BACKBONE_KINDS:
        return f'these are weights of {theirs}; the config builds {KINDS[ours.kind][0]}'
    if theirs.num_classes != ours.num_classes and ours.kind not in BACKBONE_KINDS:
        return (
            f'the file is for {theirs.num_classes} classes, the config for {ours.num_classes}; to '
            'fine-tune it, drop its class layers first: '
            'python tools/convert_checkpoint.py {source} OUT --drop-head'
        )
    if problems == {'missing'}:
        return 'the file is incomplete'
    return 'the file does not fit the model that the config builds'


# --- what RMT itself knows -----------------------------------------------------------------------


def _find_rmt(model: nn.Module) -> tuple[str, nn.Module | None]:
    for prefix, module in (('', model), ('backbone.', getattr(model, 'backbone', None))):
        if hasattr(module, 'is_surplus'):
            return prefix, module
    return '', None


def _is_surplus(model: nn.Module, name: str) -> bool:
    prefix, rmt = _find_rmt(model)
    return rmt is not None and name.startswith(prefix) and rmt.is_surplus(name.removeprefix(prefix))


def _check_tables(model: nn.Module, state_dict: dict[str, Tensor], source: str) -> None:
    """Stored angles and decays say for which attention the weights were trained."""
    prefix, rmt = _find_rmt(model)
    for name, table in relpos_tables(rmt.variant).items() if rmt is not None else ():
        stored = state_dict.get(prefix + name)
        if stored is None:
            continue
        if stored.shape != table.shape or not torch.allclose(stored.float(), table, rtol=1e-3):
            raise CheckpointError(
                f'{source}: {prefix + name} differs from what {describe(rmt.state_dict()).size} '
                'computes; the weights were made for other heads or another decay'
            )


def _own_meta(checkpoint: dict) -> dict:
    meta = checkpoint.get('meta')
    own = meta.get('rmt') if isinstance(meta, dict) else None
    return own if isinstance(own, dict) else {}
