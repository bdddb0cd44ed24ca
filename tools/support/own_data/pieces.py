"""What the parts of a config's text have in common."""

from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from support.own_data.recipe import Case, Recipe

WIDTH = 96


@dataclass(frozen=True)
class Paths:
    """Where the data lies.

    Attributes:
        root: what all other paths are relative to.
        images: the folder of each split.
        annotations: the annotation file of each split, or the folder of its label maps.
        lists: for label maps, the file that lists the names of each split, if there is one.
        suffixes: of images and label maps.
    """

    root: Path
    images: dict[str, str]
    annotations: dict[str, str]
    lists: dict[str, str] | None = None
    suffixes: tuple[str, str] = ('', '')


@dataclass(frozen=True)
class Start:
    """The weights that the training starts from.

    Attributes:
        key: ``'pretrained'`` for a backbone, ``'load_from'`` for a whole model; empty for none.
        file: as an absolute path.
        why: what of it is used.
        own_classes: whether its class layers are left out.
    """

    key: str = ''
    file: str = ''
    why: str = ''
    own_classes: bool = False


def comment(text: str, indent: str = '') -> str:
    return '\n'.join(
        wrap(text, WIDTH, initial_indent=f'{indent}# ', subsequent_indent=f'{indent}# ')
    )


def metainfo(classes: list[str]) -> str:
    names = ', '.join(map(repr, classes))
    if len(names) > 60:
        names = '\n    ' + ',\n    '.join(map(repr, classes)) + ',\n'
        return f'classes = ({names})\nmetainfo = dict(classes=classes)'
    return (
        f'classes = ({names}{"," if len(classes) == 1 else ""})\nmetainfo = dict(classes=classes)'
    )


def loader(case: Case) -> str:
    if case.machine.gpu:
        return f'loader = dict(num_workers={max(2, min(8, case.machine.cores - 1))})'
    return (
        '# loading takes a small part of a step: worker processes would only take time from it\n'
        'loader = dict(num_workers=0, persistent_workers=False)'
    )


def backbone(case: Case, chosen: Recipe) -> str:
    lines = []
    if not case.machine.gpu:
        lines += ["        norm_cfg=dict(type='BN'),  # SyncBN is for several GPUs"]
    for key, name in (('drop_path', 'drop_path_rate'), ('frozen', 'frozen_stages')):
        if chosen[key].value is not None:
            lines += [f'        # {chosen[key].why}', f'        {name}={chosen[key].value},']
    return '\n'.join(['    backbone=dict(', '        _base_.backbone,', *lines, '    ),'])
