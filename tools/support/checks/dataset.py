"""A data set as a config describes it: inside wrappers, its paths joined, what it reads."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS, TRANSFORMS, Registry

from support.cli import UserError, one_line


def leaves(dataset: dict, key: str) -> Iterator[tuple[str, dict]]:
    """The datasets inside wrappers (RepeatDataset, ConcatDataset), with their keys."""
    inner = dataset.get('dataset', dataset.get('datasets'))
    if isinstance(inner, dict):
        yield from leaves(inner, f'{key}.dataset')
    elif inner:
        for i, each in enumerate(inner):
            yield from leaves(each, f'{key}.datasets.{i}')
    else:
        yield key, dataset


def path_of(dataset: dict, dotted: str) -> str | None:
    """A path of a dataset's config as mmengine joins it with ``data_root``."""
    value: Any = dataset
    for name in dotted.split('.'):
        value = value.get(name) if value else None
    if not isinstance(value, str) or '://' in value or not (value or dotted != 'ann_file'):
        return None
    return os.path.join(dataset.get('data_root') or '', value)


def is_local(config: dict) -> bool:
    """Whether a data set or a metric reads plain files."""
    return (config.get('backend_args') or {}).get('backend', 'local') in ('local', 'LocalBackend')


def kind_of(registry: Registry, name: object) -> type | None:
    """The class of that name in the default scope, None where there is none."""
    if not isinstance(name, str):
        return name if isinstance(name, type) else None
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(name)


def reason_of(error: Exception) -> str:
    """The text of an error; with its type where it is a mere word."""
    text = one_line(error)
    return text if ' ' in text else f'{type(error).__name__}: {text}'


def some(names: Sequence[object], most: int = 5) -> str:
    """The first names, and how many more there are."""
    rest = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(map(repr, names[:most])) + rest


@dataclass
class Leaf:
    """A data set without wrappers; ``key`` is its place in the config."""

    key: str
    config: dict
    listed: list[str] | None = None
    """the classes that it found in its folders, once listed"""

    @cached_property
    def kind(self) -> type | None:
        """Its class, None where no such class is registered."""
        return kind_of(DATASETS, self.config.get('type'))

    @cached_property
    def family(self) -> set[str]:
        """The names of its class and of all that it inherits from."""
        return {parent.__name__ for parent in self.kind.__mro__} if self.kind else set()

    @cached_property
    def reads_plain_coco(self) -> bool:
        """Whether mmdet reads its annotation file as COCO's; LVIS and panoptic files are others."""
        if 'CocoDataset' not in self.family:
            return False
        from mmdet.datasets import CocoDataset

        return all(
            getattr(self.kind, name) is getattr(CocoDataset, name)
            for name in ('load_data_list', 'parse_data_info', 'COCOAPI')
        )

    @property
    def classifies(self) -> bool:
        """Whether mmpretrain reads it, an image a sample and a class an image."""
        return bool(self.family & {'CustomDataset', 'CIFAR10', 'MNIST'})

    @property
    def is_of_folders(self) -> bool:
        """Whether the folders that images are in are their classes."""
        return 'CustomDataset' in self.family and not self.config.get('ann_file')

    @property
    def trains(self) -> bool:
        """Whether a model learns from it."""
        return self.key.startswith('train')

    @cached_property
    def steps(self) -> list[Any]:
        """The transforms of its pipeline that read images and annotations, built."""
        steps = [step for step in self.config.get('pipeline') or [] if _reads_files(step)]
        try:
            return [TRANSFORMS.build(step) for step in steps]
        except Exception as error:
            raise UserError(f'{self.key}.pipeline: {reason_of(error)}') from error

    def loads(self, what: str) -> bool:
        """Whether the pipeline loads ``'bbox'``, ``'mask'`` or ``'seg'``."""
        return any(getattr(step, f'with_{what}', False) for step in self.steps)

    @property
    def trains_objects(self) -> bool:
        """Whether there is nothing to train on without objects."""
        return self.trains and (self.loads('bbox') or self.loads('mask'))

    @property
    def path(self) -> str | None:
        """Its annotation file."""
        return path_of(self.config, 'ann_file')

    @cached_property
    def classes(self) -> list[str] | None:
        """The names of its classes as mmengine finds them, None where it has none."""
        place = f'{self.key}.metainfo.classes'
        classes = (self.config.get('metainfo') or {}).get('classes')
        classes = classes or getattr(self.kind, 'METAINFO', {}).get('classes')
        if isinstance(classes, str):
            if not os.path.isfile(classes):
                raise UserError(f'{place}={classes!r}: must be a list; write [{classes!r}]')
            classes = list_from_file(classes)  # mmengine takes a file of names too
        if classes is None:
            return None
        if not all(isinstance(name, str) for name in classes):
            raise UserError(f'{place}={classes!r}: must be a list of names')
        if twice := repeated(classes):
            raise UserError(f'{place}: names {twice!r} twice; name each class once')
        return list(classes)

    @property
    def head_classes(self) -> list[str] | None:
        """The classes that a head of objects tells apart: of a panoptic data set, the things."""
        metainfo = {**getattr(self.kind, 'METAINFO', {}), **(self.config.get('metainfo') or {})}
        things = metainfo.get('thing_classes')
        return list(things) if things and 'CocoPanopticDataset' in self.family else self.classes


def _reads_files(step: Any) -> bool:
    """Whether a transform reads an image or annotations of what a data set lists, and only that."""
    if not isinstance(step, dict) or 'type' not in step:
        return False
    kind = kind_of(TRANSFORMS, step['type'])
    names = {parent.__name__ for parent in getattr(kind, '__mro__', ())}
    return bool(names & {'LoadImageFromFile', 'LoadAnnotations'}) or any(
        re.fullmatch('Load.*ImageFrom.*', name) for name in names
    )


def repeated(values: Sequence[Any]) -> Any | None:
    """The first value that was there before."""
    seen = set()
    return next((v for v in values if v in seen or seen.add(v)), None)
