"""State dict -> model, completely or not at all.

mmengine loads with ``strict=False``: what does not fit stays random, with a warning at most. Here
every tensor of the model comes from the file, and every tensor of the file goes to the model or
is named as dropped; anything else raises :class:`CheckpointError`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from .causes import how_to_fine_tune, likely_cause
from .checkpoint import Checkpoint, CheckpointError, first_few, own_meta, told_family
from .families import PREFIX, family_in
from .layout import RELEASED_CLASSIFIERS, Description, as_classifier, recognise, split_backbone
from .read import check_tensors, read_checkpoint, state_dict_in

__all__ = [
    'CheckpointError',
    'check_part',
    'load_backbone',
    'load_model',
    'match',
    'match_checkpoint',
]


@dataclass(frozen=True)
class Match:
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
            parts.append(f'{len(self.dropped)} dropped ({first_few(self.dropped)})')
        if self.filled:
            parts.append(f'{len(self.filled)} as initialised ({first_few(self.filled)})')
        return ', '.join(parts)


def load_backbone(
    model: nn.Module,
    file: str,
    key: str | None = None,
    prefix: str | None = None,
    map_location: Any = 'cpu',
) -> Match:
    """Load a backbone from a file of any released kind: ImageNet, detector, segmentor.

    Output norms that the file has not (ImageNet files have none) stay as initialised.

    Args:
        key: where in the file, e.g. 'model_ema'; by default 'state_dict', 'model', or the file.
        prefix: what stands before the backbone's names there, e.g. 'student.backbone'; by default
            'backbone.' where names begin so, else nothing.
        map_location: the device that the file is read to.

    Raises:
        CheckpointError: see :func:`match`; or no name begins with the prefix.
    """
    checkpoint = read_checkpoint(file, map_location)
    state_dict = state_dict_in(checkpoint, file, key)
    if prefix:
        state_dict = _below(prefix.rstrip('.') + '.', state_dict, checkpoint, file)
    family = family_in(model)
    state_dict = family.from_released(state_dict)
    description = describe(state_dict, told_family(checkpoint), model, file)
    kept, dropped = split_backbone(state_dict)
    result = match(model, kept, file, family.is_output_norm, told=description.told)
    model.load_state_dict(result.state_dict)
    result = Match(result.state_dict, dropped + result.dropped, result.filled)
    print_log(f'{file}: {description}: {result}', 'current')
    return result


def _below(
    prefix: str, state_dict: dict[str, Tensor], checkpoint: Checkpoint, file: str
) -> dict[str, Tensor]:
    found = {n.removeprefix(prefix): t for n, t in state_dict.items() if n.startswith(prefix)}
    if found:
        return found
    key = prefix.rstrip('.')
    hint = f'; did you mean key={key!r}?' if isinstance(checkpoint.get(key), dict) else ''
    raise CheckpointError(
        f'{file}: no name begins with the prefix {prefix!r}, only {first_few(state_dict)}{hint}'
    )


def load_model(model: nn.Module, file: str) -> Checkpoint:
    """Load a whole detector or segmentor for inference; the result also has the file's 'meta'.

    Raises:
        CheckpointError: see :func:`match`.
    """
    checkpoint = read_checkpoint(file)
    result = match_checkpoint(model, checkpoint, training=False)
    model.load_state_dict(result.state_dict)
    return checkpoint


def match_checkpoint(
    model: nn.Module,
    checkpoint: dict,
    training: bool,
    config: str | None = None,
    own_classes: bool = False,
) -> Match:
    """Match a checkpoint with a detector, segmentor or classifier; heads may lack before training.

    Args:
        config: the file of the model's config, for advice.
        own_classes: the file's classes are others: before training, its layers whose size is the
            class count are left out.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    source = getattr(checkpoint, 'source', 'the checkpoint')
    family = family_in(model)
    state_dict = family.from_released(state_dict_in(checkpoint, source))
    description = describe(state_dict, told_family(checkpoint), model, source)
    ours, told = recognise(model.state_dict(), family.name), description.told
    headless = set(own_meta(checkpoint).get('dropped_head', ()))
    dropped = []
    if description.kind in RELEASED_CLASSIFIERS and ours.kind == 'classifier':
        state_dict, dropped = as_classifier(state_dict)
        description = recognise(state_dict, told)
    elif description.is_backbone and not ours.is_backbone:
        state_dict, dropped = split_backbone(state_dict)
        state_dict = {f'{PREFIX}{name}': tensor for name, tensor in state_dict.items()}
        norm = ours.family.is_output_norm
        headless = {n for n in model.state_dict() if not n.startswith(PREFIX) or norm(n)}
    if headless and not training:
        raise CheckpointError(
            f'{source}: an {description}, without the heads that the config needs; '
            'train from it (load_from), or give a trained file'
        )
    if own_classes and training and not description.is_backbone:
        dropped = [name for name in state_dict if description.is_class_layer(name)]
        state_dict = {n: tensor for n, tensor in state_dict.items() if n not in set(dropped)}
        headless |= {name for name in model.state_dict() if ours.is_class_layer(name)}
        print_log(
            f'{source}: the classes are others: its class layers are left out and start anew: '
            f'{first_few(dropped, 12)}',
            'current',
        )
    advice = how_to_fine_tune(source, config) if training else ''
    result = match(model, state_dict, source, headless.__contains__, advice, told)
    result = Match(result.state_dict, dropped + result.dropped, result.filled)
    print_log(f'{source}: {description}: {result}', 'current')
    return result


def check_part(backbone: nn.Module, state_dict: dict, source: str, told: str | None = None) -> None:
    """Refuse what a lenient loader is about to give a backbone that is part of a model.

    Args:
        state_dict: all that the loader has for it, under the backbone's own names.
        told: the family that the file speaks of, empty if of none; None if there is no file.

    Raises:
        CheckpointError: see :func:`match`.
    """
    if not state_dict:
        raise CheckpointError(
            f'{source}: has no names where the model has its backbone; an ImageNet file is given '
            "as the backbone's init_cfg (pretrained=FILE), a whole detector or segmentor here"
        )
    check_tensors(state_dict, source)
    if told is not None:
        told = describe(state_dict, told, backbone, source).told
    match(backbone, state_dict, source, told=told or '')


def describe(
    state_dict: dict[str, Tensor], told: str, model: nn.Module, source: str
) -> Description:
    """What a state dict is; where nothing tells its family, the model's, and the log says so."""
    description, family = recognise(state_dict, told), family_in(model)
    if description.told or not (description.family.names and family.names):
        return description
    print_log(
        f'{source}: whether it is of {description.family.name} cannot be told from the file; taken '
        f'for {family.name}, which the config builds',
        'current',
    )
    return recognise(state_dict, family.name)


def match(
    model: nn.Module,
    state_dict: dict[str, Tensor],
    source: str,
    may_lack: Callable[[str], bool] = lambda name: False,
    advice: str = '',
    told: str = '',
) -> Match:
    """Hold a state dict, under our names, against a model, name by name.

    Args:
        source: the file, for messages.
        may_lack: whether the file may be without this name, which then keeps its initial value.
        advice: what to do where nothing but the number of classes differs.
        told: the family of the backbone, where names and shapes leave a choice; the model's if
            empty.

    Raises:
        CheckpointError: a name is missing or unexplained, a shape or type differs, the family is
            another, or a stored table says that the weights were made for another attention.
    """
    expected = model.state_dict()
    family = family_in(model)
    ours = recognise(expected, family.name)
    theirs = recognise(state_dict, told or family.name)
    surplus = _surplus_of(model)
    family = ours.family
    dropped = [n for n in state_dict if n not in expected and (family.is_derived(n) or surplus(n))]
    missing = [name for name in expected if name not in state_dict]
    filled = [name for name in missing if family.is_optional(name) or may_lack(name)]
    problems = {
        'missing': {name: name for name in missing if name not in filled},
        'unexplained': {n: n for n in state_dict if n not in expected and n not in dropped},
        'of another shape': {
            name: f'{name} {_shape(tensor)} in the file, {_shape(expected[name])} in the model'
            for name, tensor in state_dict.items()
            if name in expected and tensor.shape != expected[name].shape
        },
        'of another type': {
            name: f'{name} {tensor.dtype} in the file, {expected[name].dtype} in the model'
            for name, tensor in state_dict.items()
            if name in expected
            and not family.is_optional(name)  # counters, which enter no result
            and not _convertible(tensor.dtype, expected[name].dtype)
        },
    }
    problems = {what: names for what, names in problems.items() if names}
    if problems or not theirs.family.may_be(family):
        cause = likely_cause(theirs, ours, problems, advice)
        lists = [
            f'{len(names)} {what}: {first_few(names.values())}' for what, names in problems.items()
        ]
        detail = '; '.join(lists) or 'the same names and shapes, another attention'
        raise CheckpointError(f'{source}: {cause} ({detail})')
    _check_tables(model, ours, state_dict, source)
    return Match({n: state_dict.get(n, expected[n]) for n in expected}, dropped, filled)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _convertible(theirs: torch.dtype, ours: torch.dtype) -> bool:
    return (
        theirs.is_floating_point == ours.is_floating_point and theirs.is_complex == ours.is_complex
    )


# --- what the backbone itself knows --------------------------------------------------------------


def _find_backbone(model: nn.Module) -> tuple[str, nn.Module | None]:
    for prefix, module in (('', model), (PREFIX, getattr(model, 'backbone', None))):
        if hasattr(module, 'is_surplus'):
            return prefix, module
    return '', None


def _surplus_of(model: nn.Module) -> Callable[[str], bool]:
    """Whether a backbone with fewer outputs rightly has no place for a name."""
    prefix, backbone = _find_backbone(model)
    if backbone is None:
        return lambda name: False
    return lambda name: name.startswith(prefix) and backbone.is_surplus(name.removeprefix(prefix))


def _check_tables(
    model: nn.Module, ours: Description, state_dict: dict[str, Tensor], source: str
) -> None:
    """Stored tables say for which attention the weights were trained."""
    prefix, backbone = _find_backbone(model)
    tables = ours.family.tables(backbone.variant) if backbone is not None else {}
    for name, table in tables.items():
        stored = state_dict.get(prefix + name)
        if stored is None:
            continue
        if not _same_table(stored, table):
            raise CheckpointError(
                f'{source}: {prefix + name} differs from what {ours.size} computes; '
                'the weights were made for other heads, other angles or another decay'
            )


def _same_table(stored: Tensor, table: Tensor) -> bool:
    if stored.shape != table.shape or not stored.is_floating_point():
        return False
    rtol = max(1e-3, torch.finfo(stored.dtype).eps)  # files in half precision round them
    return torch.allclose(stored.cpu().float(), table, rtol=rtol)
