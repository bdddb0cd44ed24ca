"""A data set as a config describes it: inside wrappers, with its paths joined."""

import os
from collections.abc import Iterator, Sequence
from typing import Any


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


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    rest = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(map(repr, names[:most])) + rest
