"""What is shown of what is found: picture, table, legend, sentence, and the files to download."""

import html
import io
import json
from collections import Counter
from dataclasses import dataclass

from mmengine.structures import BaseDataElement
from PIL import Image

from support.prediction.findings import best_classes, label_map, named, objects, shares
from support.web.finder import Finder, Found

COLUMNS = {
    'detection': ['class', 'score', 'left', 'top', 'right', 'bottom'],
    'segmentation': ['class', 'share of the pixels'],
    'classification': ['class', 'score'],
}
"""Of the table, by task."""
LAYERS = ['boxes', 'masks']


@dataclass(frozen=True)
class View:
    """What a visitor sees.

    Attributes:
        files: contents by suffix; ``.png`` is the picture.
        rows: of the table.
        legend: HTML.
        sentence: how much is found, and how long it took.
        masked: whether the model predicts objects' masks.
    """

    files: dict[str, bytes]
    rows: list[list]
    legend: str
    sentence: str
    masked: bool = False


def view(found: Found, finder: Finder, threshold: float, layers: list[str]) -> View:
    """What is found, nothing of it computed again.

    Args:
        threshold: least score of an object shown.
        layers: those of ``LAYERS`` that are drawn of objects.
    """
    if finder.task == 'segmentation':
        return _areas(found, finder)
    if finder.task == 'classification':
        return _classes(found, finder)
    return _objects(found, finder, threshold, layers)


def _objects(found: Found, finder: Finder, threshold: float, layers: list[str]) -> View:
    everything = found.sample.pred_instances
    masked = 'masks' in everything
    kept = objects(found.sample, threshold, masked)
    entries = named(kept, finder.meta['classes'])
    sample = found.sample.clone()
    sample.pred_instances = everything[everything.scores >= threshold].clone()
    for layer, key in zip(LAYERS, ('bboxes', 'masks'), strict=True):
        if layer not in layers and key in sample.pred_instances and masked:
            delattr(sample.pred_instances, key)
    rows = [
        [each['class'], round(each['score'], 3), *map(round, each['box_xyxy'])] for each in entries
    ]
    counts = Counter(each['label'] for each in kept)
    what = f'{len(kept)} object{"" if len(kept) == 1 else "s"} at {threshold:.2f} or above'
    if not kept and len(everything):
        what = f'Nothing at {threshold:.2f} or above; the surest has {everything.scores.max():.2f}'
    return View(
        _files(found, finder, sample, entries),
        rows,
        _legend(finder, {label: str(number) for label, number in counts.most_common()}),
        f'{what}{_took(found)}',
        masked,
    )


def _areas(found: Found, finder: Finder) -> View:
    classes = finder.meta['classes']
    parts = dict(sorted(shares(found.sample, classes).items(), key=lambda part: -part[1]))
    labels = {name: label for label, name in enumerate(classes)}
    files = _files(found, finder, found.sample, parts)
    files['.labels.png'] = label_map(found.sample, finder.meta)
    return View(
        files,
        [[name, f'{share:.1%}'] for name, share in parts.items()],
        _legend(finder, {labels[name]: f'{share:.1%}' for name, share in parts.items()}),
        f'{len(parts)} class{"" if len(parts) == 1 else "es"}{_took(found)}',
    )


def _classes(found: Found, finder: Finder) -> View:
    best = best_classes(found.sample)
    entries = named(best, finder.meta['classes'])
    return View(
        _files(found, finder, found.sample, entries),
        [[each['class'], round(each['score'], 3)] for each in entries],
        _legend(finder, {each['label']: f'{each["score"]:.1%}' for each in best}),
        f'The {len(best)} likeliest of {len(finder.meta["classes"])} classes{_took(found)}',
    )


def _took(found: Found) -> str:
    height, width = found.picture.pixels.shape[:2]
    return f', found in {found.seconds:.2f} s ({width} × {height} pixels)'


def _files(found: Found, finder: Finder, sample: BaseDataElement, entries: object) -> dict:
    drawn, picture = finder.draw(found.picture, sample), io.BytesIO()
    Image.fromarray(drawn).save(picture, 'PNG', compress_level=1)
    text = json.dumps({found.picture.source.name: entries}, indent=1)
    return {'.png': picture.getvalue(), '.json': text.encode()}


def _legend(finder: Finder, notes: dict[int, str]) -> str:
    """A colour, a name and a note a class; whence the names come is not to be trusted."""
    classes, palette = finder.meta['classes'], finder.meta['palette']
    entries = [
        f'<span class="entry"><i style="background:rgb{tuple(map(int, palette[label]))}"></i>'
        f'{html.escape(str(classes[label]))} <b>{html.escape(note)}</b></span>'
        for label, note in notes.items()
    ]
    return f'<div class="legend">{"".join(entries)}</div>'
