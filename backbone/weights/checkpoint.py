"""What a weights file holds beside its tensors, made fit for those who will read it.

mmengine, mmdet and mmseg take what stands there on trust: a config's text is run as Python, and
its ``type`` may name any function; the path of the best checkpoint so far is a file to be removed.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .families import FAMILIES, family_in_config


class CheckpointError(ValueError):
    """A weights file is refused. The message is one line: the file, what is wrong, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: object) -> str:
    """Text from a file on one line, without what would move a terminal's cursor."""
    return ''.join(c if c.isprintable() else ' ' for c in str(text))


class _PlainWhenSaved(dict):
    """A dict that is saved, and copied, as what any reader knows."""

    def __reduce__(self) -> tuple[Any, tuple, None, None, Iterator]:
        return OrderedDict, (), None, None, iter(self.items())


class Checkpoint(_PlainWhenSaved):
    """What a weights file holds; ``source`` is where it came from, for messages."""

    def __init__(self, content: Mapping, source: str = 'the checkpoint') -> None:
        super().__init__(content)
        self.source = source


class _WithoutConfig(_PlainWhenSaved):
    """The run's information, without the config that an inferencer looks for in it."""

    source: str

    def __missing__(self, key: str) -> None:
        if key == 'cfg':
            raise CheckpointError(
                f'{self.source}: a config is needed as well, for the text of one in a weights file '
                'is not run: give both, e.g. DetInferencer(model=CONFIG, weights=FILE)'
            )
        raise KeyError(key)


class Versions(OrderedDict):
    """Versions of a state dict's layers; tells each layer that is loaded where it comes from.

    And of which family of backbones its file is, if that says it.
    """

    source: str
    family: str

    def get(self, layer: str, default: Any = None) -> dict:
        return {**super().get(layer, {}), 'source': self.source, 'family': self.family}

    __reduce__ = _PlainWhenSaved.__reduce__


def settled(content: dict, source: str) -> Checkpoint:
    """What a file holds, without what would be run, and of the types that its readers expect.

    Raises:
        CheckpointError: something is of another type.
    """
    checkpoint = Checkpoint(content, source)
    _check_meta(checkpoint)
    _set_configs_aside(checkpoint)
    _check_paths(checkpoint)
    _name_source(checkpoint)
    return checkpoint


def _check_meta(checkpoint: Checkpoint) -> None:
    if 'state_dict' in checkpoint and checkpoint.get('meta') is None:
        checkpoint['meta'] = {}  # mmseg reads it without asking
    meta = checkpoint.get('meta', {})
    _expect(checkpoint, 'meta', meta, dict)
    if meta.get('dataset_meta', {}) is None:
        del meta['dataset_meta']
    dataset = meta.get('dataset_meta', {})
    _expect(checkpoint, "meta's dataset_meta", dataset, dict)
    for name in dataset:
        _expect(checkpoint, "a name in meta's dataset_meta", name, str)
    for place in (meta, dataset):
        for name in ('classes', 'CLASSES'):
            names = () if place.get(name) is None else place[name]
            _expect(checkpoint, f"meta's {name}", names, (list, tuple))
            for each in names:
                _expect(checkpoint, f"meta's {name}", each, str)
        for name in ('palette', 'PALETTE'):
            if place.get(name) is not None and not _is_palette(place[name]):
                raise CheckpointError(f"{checkpoint.source}: meta's {name} is no list of colours")


def _expect(checkpoint: Checkpoint, what: str, value: Any, kinds: type | tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        raise CheckpointError(
            f'{checkpoint.source}: damaged, {what} has a {type(value).__name__} where none belongs'
        )


def _is_palette(value: Any) -> bool:
    if isinstance(value, str):
        return True  # the name of one
    colours = value.tolist() if hasattr(value, 'tolist') else value
    return isinstance(colours, (list, tuple)) and all(
        isinstance(colour, (list, tuple))
        and len(colour) == 3
        and all(isinstance(part, int) and 0 <= part < 256 for part in colour)
        for colour in colours
    )


def _set_configs_aside(checkpoint: Checkpoint) -> None:
    """``Runner.resume`` runs ``meta['config']``; inferencers run the hub's ``cfg``, or meta's.

    One is kept for people to read, as ``meta['config_text']``.
    """
    info = _hub_info(checkpoint)
    meta = meta_in(checkpoint)
    texts = [place.pop(name, None) for place in (meta, info) for name in ('cfg', 'config')]
    text = next((text for text in texts if isinstance(text, str)), None)
    if text is None:
        return
    meta['config_text'] = text  # of a checkpoint without meta, nobody reads it
    hub = checkpoint.get('message_hub')
    if isinstance(hub, dict) and isinstance(hub.get('runtime_info'), dict):
        hub['runtime_info'] = _WithoutConfig(info)
        hub['runtime_info'].source = checkpoint.source
    if isinstance(hub, dict) and isinstance(hub.get('resumed_keys'), dict):
        hub['resumed_keys'].pop('cfg', None)


def _check_paths(checkpoint: Checkpoint) -> None:
    """A resumed run removes the checkpoints that it remembers; let them be its own."""
    info = _hub_info(checkpoint)
    for name in [n for n in info if str(n).startswith('best_ckpt')]:
        file = os.path.basename(info[name]) if isinstance(info[name], str) else ''
        if not file.startswith('best_'):
            del info[name]
    steps = info.get('keep_ckpt_ids', [])
    if not isinstance(steps, list) or any(type(step) is not int for step in steps):
        del info['keep_ckpt_ids']


def _hub_info(checkpoint: Checkpoint) -> dict:
    hub = checkpoint.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, dict) else None
    return info if isinstance(info, dict) else {}


def _name_source(checkpoint: Checkpoint) -> None:
    """Let whatever loads the state dict know the file, by the way of its layers' versions."""
    weights = checkpoint.get('state_dict', checkpoint)
    _expect(checkpoint, 'its state_dict', weights, dict)
    for name in weights:
        _expect(checkpoint, 'a name', name, str)
    versions = Versions(_versions_in(weights))
    versions.source, versions.family = checkpoint.source, told_family(checkpoint)
    if weights is not checkpoint:
        weights = checkpoint['state_dict'] = OrderedDict(weights)
    weights._metadata = versions


def _versions_in(weights: dict) -> dict:
    found = getattr(weights, '_metadata', {})
    sound = all(
        isinstance(layer, str) and isinstance(of, dict) and type(of.get('version', 1)) is int
        for layer, of in found.items()
    )
    return found if sound else {}


# --- what it says of itself ----------------------------------------------------------------------


def meta_in(checkpoint: Mapping) -> dict:
    """What a checkpoint says of itself; empty if nothing."""
    meta = checkpoint.get('meta')
    return meta if isinstance(meta, dict) else {}


def own_meta(checkpoint: Mapping) -> dict:
    """What was written of it here, what is of other types left out; empty if nothing."""
    own = meta_in(checkpoint).get('rmt')
    kinds = dict(
        family=str,
        source=str,
        date=str,
        tensors_sha256=str,
        epoch=int,
        iter=int,
        dropped_head=list,
    )
    found = {
        name: own[name]
        for name, kind in kinds.items()
        if isinstance(own, dict) and type(own.get(name)) is kind
    }
    if not all(isinstance(name, str) for name in found.get('dropped_head', ())):
        del found['dropped_head']
    return found


def told_family(checkpoint: Mapping) -> str:
    """The name of the family of backbones that it speaks of; empty if it does of none."""
    own = own_meta(checkpoint).get('family')
    if own in [family.name for family in FAMILIES]:
        return own
    text = meta_in(checkpoint).get('config_text')
    return family_in_config(text) if isinstance(text, str) else ''


def class_names(meta: dict) -> list[str]:
    """Class names as mmengine ('dataset_meta') or mmdet 2 and mmseg 0 ('CLASSES') store them."""
    dataset = meta.get('dataset_meta')
    names = dataset.get('classes') if isinstance(dataset, dict) else meta.get('CLASSES')
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else []


def first_few(names: Iterable, count: int = 3) -> str:
    """The first few names and how many more there are."""
    names = [str(name)[:160] for name in names]
    more = f', and {len(names) - count} more' if len(names) > count else ''
    return (', '.join(names[:count]) or 'nothing') + more
