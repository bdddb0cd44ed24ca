"""A mistake in a config in one line: the key that is wrong, and the nearest that exists.

mmengine passes a section of a config to a constructor as keyword arguments, so a misspelt key ends
in a ``TypeError`` that names neither the section nor what was meant, some of them after an epoch.
"""

import difflib
import inspect
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from inspect import Parameter
from typing import Any

import mmengine.registry
from mmengine.hooks import CheckpointHook
from mmengine.registry import Registry
from torch import nn

from ..weights.read import CheckpointError


class ConfigError(ValueError):
    """A config asks for what there is not. The message is one line: the key, what to do."""


@contextmanager
def explained(cfg: Any, section: str | None = None) -> Iterator[None]:
    """Inside, a mistake in that section of ``cfg`` raises a :class:`ConfigError`.

    Without a section only what :func:`explain` knows does.
    """
    try:
        yield
    except (ConfigError, CheckpointError):
        raise
    except (TypeError, KeyError, ValueError, AssertionError) as error:
        line = explain(error, cfg)
        if not (line or section):
            raise
        raise ConfigError(line or f'{section}: {one_line(error)}') from error


def one_line(error: object) -> str:
    """The text of an error without line breaks."""
    # str(KeyError) is the repr of its argument
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return ' '.join(str(text).split())


def explain(error: Exception, cfg: Any) -> str | None:
    """The line for a key or type that does not exist; None for other mistakes."""
    text = str(error)
    if found := re.search(
        r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", text
    ):
        owner, key = found.groups()
        places = list(_having(cfg, key))
        if not places:
            return None
        # the constructor that complains may be the parent of the class that the config names
        place, section = next((p for p in places if _type_name(p[1]) == owner), places[0])
        kind = _type_name(section) or owner
        known = set(section).union(*(arguments(each) for each in _classes(kind)))
        return unknown(f'{place}.{key}', key, known - {key}, f'{kind} has no {key}')
    if found := re.search(r'([\w.]+) is not in the (?:[\w]+::)?([\w ]+?) registry', text):
        name, registry = found.groups()
    elif text.startswith('None is not a callable'):  # mmengine looks optimizers up by itself
        name, registry = _type_name(cfg['optim_wrapper'].get('optimizer', {})), 'optimizer'
    else:
        return None
    known = {n for r in _registries() if r.name == registry for n in r.module_dict}
    places = (p for p, node in _having(cfg, 'type') if _type_name(node) == name)
    place = next((f'{place}.type={name}' for place in places), name)
    return unknown(place, name, known, f'no such {registry}')


def unknown(place: str, name: str, known: Collection[str], what: str) -> str:
    """The line that a name is none of the ``known`` ones; ``what`` says of whom."""
    near = difflib.get_close_matches(name, known, 1)
    hint = f'; did you mean {near[0]}?' if near else ''
    return f'{place}: {what}{hint}'


def arguments(kind: Any) -> set[str]:
    """The names of the arguments that a class or a function takes, parents' included."""
    found = set()
    for each in getattr(kind, '__mro__', (kind,)):
        if inspect.isclass(each) and '__init__' not in vars(each):
            continue
        parameters = inspect.signature(each.__init__ if inspect.isclass(each) else each).parameters
        found |= {
            name
            for name, parameter in parameters.items()
            if parameter.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
        }
        if all(p.kind != Parameter.VAR_KEYWORD for p in parameters.values()):
            break  # passes nothing on to its parents
    return found - {'self'}


def check_checkpoint_hook(hooks: list, save_checkpoint: Any, cfg: Any) -> None:
    """Refuse what mmengine's hook passes on unseen until the first checkpoint is written."""
    for hook in hooks:
        if not isinstance(hook, CheckpointHook):
            continue
        known = set(inspect.signature(save_checkpoint).parameters)
        for key in set(hook.args) - known:
            place = next((f'{place}.{key}' for place, _ in _having(cfg, key)), key)
            choices = (known | arguments(type(hook))) - {'out_dir', 'filename', 'meta'}
            raise ConfigError(unknown(place, key, choices, f'{type(hook).__name__} has no {key}'))


def check_optimizer(wrapper: Any, cfg: Any) -> None:
    """Refuse what mmengine passes on unseen until the first step, or never looks at."""
    section = cfg.get('optim_wrapper')
    if not isinstance(section, dict):
        return
    clip = getattr(wrapper, 'clip_func', None)  # several optimizers have one each
    known = set(inspect.signature(clip).parameters) if clip else set()
    for key in set(wrapper.clip_grad_kwargs or ()) - known if clip else ():
        place = f'optim_wrapper.clip_grad.{key}'
        raise ConfigError(unknown(place, key, known | {'type'}, f'no {key} there'))
    if not section.get('constructor'):
        source = inspect.getsource(mmengine.optim.DefaultOptimWrapperConstructor)
        known = set(re.findall(r"self\.paramwise_cfg\.get\('(\w+)'", source))
        for key in set(section.get('paramwise_cfg') or ()) - known:
            raise ConfigError(
                unknown(f'optim_wrapper.paramwise_cfg.{key}', key, known, f'no {key} there')
            )


def check_parts(model: nn.Module, cfg: Any) -> None:
    """Refuse names of parts that there are not, and checkpointing that would stop gradients."""
    parts = dict(model.named_modules())
    for key in ('activation_checkpointing', 'efficient_conv_bn_eval'):
        names = cfg.get(key) or []
        for name in [names] if isinstance(names, str) else names:
            if name not in parts:
                raise ConfigError(
                    unknown(f'{key}={name}', name, parts, 'the model has no such part')
                )
            if key != 'activation_checkpointing':
                continue
            # mmengine's checkpointing is "reentrant": without an input that needs a gradient there
            # is none for the weights either, and the image needs none
            for place, stem in parts.items():
                if place.endswith('backbone.patch_embed') and _holds(parts[name], stem):
                    stages = place.replace('patch_embed', 'layers.0')
                    raise ConfigError(
                        f'{key}={name}: takes images, so nothing in it would learn; give the '
                        f'stages: {stages} to .3'
                    )


def _holds(module: nn.Module, stem: nn.Module) -> bool:
    inside = {id(each) for each in module.modules()}
    return id(stem) in inside or any(module is each for each in stem.modules())


def check_channels(model: Any, cfg: Any) -> None:
    """Hold the channels that neck or heads expect against what the backbone publishes."""
    given = getattr(getattr(model, 'backbone', None), 'out_channels', None)
    section = cfg.get('model')
    if not isinstance(given, (list, tuple)) or not isinstance(section, dict):
        return
    for place, part in _readers(section):
        wanted, index = part.get('in_channels'), part.get('in_index')
        if place in ('neck', 'panoptic_head') or (index is None and isinstance(wanted, list)):
            index = range(len(given))
        if isinstance(wanted, (list, tuple)) and isinstance(index, (list, tuple, range)):
            wanted, found = list(wanted), [given[i] for i in index if i < len(given)]
        elif isinstance(wanted, int) and isinstance(index, int) and index < len(given):
            found = given[index]
        else:
            continue
        if wanted != found:
            raise ConfigError(
                f'model.{place}.in_channels={wanted}: the backbone gives {found} '
                f'({type(model.backbone).__name__}.out_channels)'
            )


def _readers(model: dict) -> Iterator[tuple[str, dict]]:
    """The parts of a model that read the backbone's features: its first neck or its heads."""
    heads = ('decode_head', 'auxiliary_head', 'panoptic_head')
    for name in ('neck',) if model.get('neck') else heads:
        parts = model.get(name)
        parts = parts if isinstance(parts, (list, tuple)) else [parts]
        for part in parts[:1] if name == 'neck' else parts:
            if isinstance(part, dict):
                yield name, part


def _having(node: Any, key: str, place: str = '') -> Iterator[tuple[str, dict]]:
    """Each dict of a config that has ``key``, with its dotted place."""
    if isinstance(node, dict):
        if key in node and place:
            yield place, node
        items = node.items()
    elif isinstance(node, (list, tuple)):
        items = ((str(i), value) for i, value in enumerate(node))
    else:
        items = node._cfg_dict.items() if hasattr(node, '_cfg_dict') else ()
    for name, value in items:
        if isinstance(value, (dict, list, tuple)):
            yield from _having(value, key, f'{place}.{name}' if place else str(name))


def _type_name(section: dict) -> str:
    kind = section.get('type', '')
    return (kind if isinstance(kind, str) else getattr(kind, '__name__', '')).split('.')[-1]


def _registries() -> Iterator[Registry]:
    for found in vars(mmengine.registry).values():
        if isinstance(found, Registry):
            yield found
            yield from found.children.values()


def _classes(name: str) -> list[Any]:
    """What is registered under a name, in every registry and scope."""
    return [r.module_dict[name] for r in _registries() if name in r.module_dict]
