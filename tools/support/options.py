"""What `--cfg-options KEY=VALUE` means: mmengine's lists and numbers, and paths as they are."""

import argparse
import difflib
import functools
import inspect
import re
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config, DictAction

from backbone.engine import RMTRunner
from support.cli import UserError, one_line

# keys whose text or absence is a path: never split at a comma, never a number
_PATH = re.compile(
    r'(^|\.)(data_prefix\.\w+|(\w+_)?(root|dir|path|file|folder|prefix)|pretrained|load_from'
    r'|checkpoint|file_?name)$'
)
_INNER_SPACES = re.compile(r'(?<=[^\s,()\[\]]) +(?=[^\s,()\[\]])')
_SPACE = '\ue000'  # stands for a space, which mmengine's parser would drop

# the smallest sensible value of what people change most
_LEAST = {
    'train_cfg.max_epochs': 1,
    'train_cfg.max_iters': 1,
    'train_cfg.val_interval': 1,
    'auto_scale_lr.base_batch_size': 1,
    **{f'{split}_dataloader.batch_size': 1 for split in ('train', 'val', 'test')},
    **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')},
}


class OptionsAction(argparse.Action):
    """Collects KEY=VALUE as text; :func:`merge`, which sees the config, decides what it means."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for word in values:
            key, equals, text = word.partition('=')
            if not (key and equals):
                raise UserError(
                    f'{option_string} {word}: must be KEY=VALUE; in quotes where it has spaces, '
                    "like 'data_root=/my data'"
                )
            options[key] = text
        setattr(namespace, self.dest, options)


def merge(cfg: Config, options: dict[str, Any]) -> None:
    """Change ``cfg`` as ``--cfg-options`` says; refuse what can not be meant."""
    known = set(cfg) | runner_keys()
    for key in options:
        top = key.split('.')[0]
        if top not in known:
            near = difflib.get_close_matches(top, known, 1)
            hint = f'; did you mean {near[0]}?' if near else ''
            raise UserError(f'--cfg-options {key}: the config has no {top}{hint}')
    for key, given in options.items():
        try:
            value = parse(key, given, at(cfg, key)) if isinstance(given, str) else given
            if isinstance(value, list) and isinstance(at(cfg, key), tuple):
                value = tuple(value)  # scale=1333,800 means (1333, 800): mmcv refuses the list
            cfg.merge_from_dict({key: value})
        except (KeyError, TypeError, ValueError, AssertionError, IndexError) as error:
            raise UserError(f'--cfg-options {key}={given}: {one_line(error)}') from error
    for key, least in _LEAST.items():
        value = at(cfg, key)
        if value is not None and (not isinstance(value, int) or value < least):
            raise UserError(f'{key}={value}: must be a whole number of at least {least}')


def parse(key: str, text: str, current: object) -> object:
    """The value that ``text`` gives to ``key``, where ``current`` stands now.

    A path stays as it is, with its commas and spaces; anything else is read by mmengine's rules,
    except that spaces inside a word or between words stay.
    """
    in_brackets = re.fullmatch(r'\[.*\]|\(.*\)', text)  # several paths
    if _PATH.search(key) and (current is None or isinstance(current, str)) and not in_brackets:
        quoted = re.fullmatch(r'(["\'])(.*)\1', text)
        return None if text == 'None' else quoted[2] if quoted else text
    return _with_spaces(DictAction._parse_iterable(_INNER_SPACES.sub(_marks, text)))


def _marks(spaces: re.Match) -> str:
    return _SPACE * len(spaces[0])


def _with_spaces(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_with_spaces, value))
    return value.replace(_SPACE, ' ') if isinstance(value, str) else value


def at(cfg: Config, dotted: str) -> object:
    """The value at a dotted key, None where there is none."""
    node = cfg
    for name in dotted.split('.'):
        if isinstance(node, (list, tuple)):
            node = node[int(name)] if name.isdigit() and int(name) < len(node) else None
        else:
            node = node.get(name) if isinstance(node, (dict, Config)) else None
    return node


@functools.cache
def runner_keys() -> frozenset[str]:
    """Top-level keys that a runner or a tool of the ecosystem reads though a config may lack them.

    The runner's are its arguments, and what its code looks up in the config.
    """
    arguments = set(inspect.signature(RMTRunner.__init__).parameters) - {'self', 'cfg'}
    code = ''.join(map(inspect.getsource, RMTRunner.__mro__[:-1]))
    looked_up = set(re.findall(r"\bcfg\.get\(\s*'(\w+)'", code))
    others = {'custom_imports', 'data_root', 'pretrained', 'runner_type'}
    return frozenset(arguments | looked_up | others | {'tta_model', 'tta_pipeline'})
