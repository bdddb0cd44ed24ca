"""The metrics that read an annotation file by themselves."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from mmengine.config import Config
from mmengine.registry import METRICS

from support.checks import coco_file
from support.checks.coco import check_coco
from support.checks.dataset import Leaf, is_local, kind_of
from support.cli import UserError


@dataclass
class Evaluation:
    """A metric of mmdet's CocoMetric, and the file that it reads."""

    key: str
    path: str
    kinds: frozenset[str]
    """what it evaluates: ``'bbox'``, ``'segm'``, ...; nothing where it only writes results"""

    def reads(self, path: str | None) -> bool:
        return path is not None and os.path.exists(path) and os.path.samefile(path, self.path)


def evaluations(cfg: Config, split: str) -> list[Evaluation]:
    """The metrics of a split that read a file in COCO's format.

    Raises:
        UserError: a metric's file is absent.
    """
    found = []
    for key, metric in metrics_of(cfg.get(f'{split}_evaluator'), f'{split}_evaluator'):
        path = metric.get('ann_file')
        if not isinstance(path, str) or not is_local(metric) or '://' in path:
            continue
        if not os.path.isfile(path):
            raise UserError(f'{key}.ann_file={path}: no such file (from {os.getcwd()})')
        if _is_coco(metric):
            kinds = metric.get('metric', 'bbox')
            kinds = [kinds] if isinstance(kinds, str) else kinds
            nothing = metric.get('format_only')
            found.append(Evaluation(key, path, frozenset(() if nothing else kinds)))
    return found


def metrics_of(node: object, key: str) -> Iterator[tuple[str, dict]]:
    """The metrics of an evaluator, which may be one, a list, or wrapped."""
    if isinstance(node, (list, tuple)):
        for i, each in enumerate(node):
            yield from metrics_of(each, f'{key}.{i}')
    elif isinstance(node, dict) and 'metrics' in node:
        yield from metrics_of(node['metrics'], f'{key}.metrics')
    elif isinstance(node, dict):
        yield key, node


def _is_coco(metric: dict) -> bool:
    """Whether a metric evaluates as CocoMetric does; LVIS's inherits from it and does not."""
    kind = kind_of(METRICS, metric.get('type'))
    if not any(parent.__name__ == 'CocoMetric' for parent in getattr(kind, '__mro__', ())):
        return False
    from mmdet.evaluation import CocoMetric

    return kind.compute_metrics is CocoMetric.compute_metrics


def check_other_file(leaf: Leaf, evaluation: Evaluation) -> None:
    """A metric's file that is not the data set's: its images must be the same ones."""
    if coco_file.is_large(leaf.path) or coco_file.is_large(evaluation.path):
        return
    file, _ = check_coco(leaf, evaluation.path, evaluation.kinds)
    names = {image['id']: image['file_name'] for image in file.images}
    for image in coco_file.read(leaf.path).images:
        if names.get(image['id']) != image['file_name']:
            raise UserError(
                f"{evaluation.key}.ann_file={evaluation.path} is not the data set's {leaf.path}, "
                f'and has no image {image["file_name"]} of id {image["id"]!r}; change both'
            )
