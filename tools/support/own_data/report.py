"""What is in the data, as text."""

from collections import Counter
from collections.abc import Callable

from support.checks.dataset import some
from support.own_data.found import Found, Maps, Objects

SIZES = {'small': 0, 'medium': 32**2, 'large': 96**2}
"""COCO's names for the sizes of objects, and the area in pixels where each begins."""

TOO_SMALL = 8
"""Pixels of a side below which a detector learns next to nothing of an object."""

SHOWN = 20
"""Of many classes so many are listed."""


def text(found: Found, side: int | None) -> str:
    """The data as a table of its splits.

    Args:
        side: the longer side that images are brought to, None for that of the paper.
    """
    splits = found.splits
    what = 'label maps' if found.is_segmentation else 'boxes and masks' if found.masks else 'boxes'
    lines = [f'{found.format} in {found.place}: {what}, {_count(len(found.classes), "class")}']
    lines.append(_row('', *splits))
    lines.append(_row('images', *(split.size for split in splits.values())))
    rows = _maps if found.is_segmentation else _objects
    lines += rows(found)
    lines.append(f'image sizes: {_image_sizes(splits.values())}')
    lines += found.notes
    if not found.is_segmentation and (few := _too_small(found, side)):
        lines.append(few)
    return '\n'.join(lines)


def _row(name: str, *values: object) -> str:
    shown = [f'{value:,}' if isinstance(value, int) else str(value) for value in values]
    return f'{name[:30]:30s}' + ''.join(f'{value:>10s}' for value in shown)


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}{"" if number == 1 else "es" if noun.endswith("s") else "s"}'


def _objects(found: Found) -> list[str]:
    splits: dict[str, Objects] = found.splits
    tallies = {name: split.tally(found.classes) for name, split in splits.items()}
    lines = [_row('objects that train', *(tally.usable for tally in tallies.values()))]
    lines += _classes(found.classes, list(class_counts(found).values()))
    by_size = [size_of_objects(split, found.classes) for split in splits.values()]
    for name, begin in SIZES.items():
        end = dict(small=32, medium=96).get(name)
        limits = f'to {end} x {end}' if not begin else f'from {begin**0.5:.0f} x {begin**0.5:.0f}'
        lines.append(_row(f'  {name}, {limits}', *(sizes[name] for sizes in by_size)))
    for name, tally in tallies.items():
        if tally.dropped:
            lines.append(
                f'{name}: of {_count(tally.objects, "object")} train nothing: {tally.reasons()}'
            )
        if tally.idle:
            lines.append(f'{name}: {_count(tally.idle, "image")} without an object to train')
    return lines


def _classes(
    classes: list[str], counts: list[Counter], form: Callable[[int], object] = int
) -> list[str]:
    lines = [
        _row(f'  {name}', *(form(count[name]) for count in counts)) for name in classes[:SHOWN]
    ]
    if len(classes) > SHOWN:
        rest = (form(sum(count[name] for name in classes[SHOWN:])) for count in counts)
        lines.append(_row(f'  {len(classes) - SHOWN} more', *rest))
    train, val = counts
    for what, lacking in (
        ('train on', [name for name in classes if not train[name]]),
        ('validate on', [name for name in classes if train[name] and not val[name]]),
    ):
        if lacking:
            lines.append(f'nothing to {what} of {some(lacking)}')
    return lines


def _maps(found: Found) -> list[str]:
    counts = class_counts(found).values()
    shares = [
        Counter({name: number / max(1, count.total()) for name, number in count.items()})
        for count in counts
    ]
    return _classes(found.classes, shares, '{:.1%}'.format)


def class_counts(found: Found) -> dict[str, Counter]:
    """By split, the objects of each class that train; of label maps the pixels."""
    if not found.is_segmentation:
        splits: dict[str, Objects] = found.splits
        return {name: split.by_class(found.classes) for name, split in splits.items()}
    maps: dict[str, Maps] = found.splits
    totals = {name: sum(split.labels, Counter()) for name, split in maps.items()}
    return {
        name: Counter({c: total[i] for i, c in enumerate(found.classes)})
        for name, total in totals.items()
    }


def size_of_objects(split: Objects, classes: list[str]) -> Counter:
    """How many objects are small, medium and large, by the area of their boxes."""
    return Counter(
        [name for name, begin in SIZES.items() if row['bbox'][2] * row['bbox'][3] >= begin][-1]
        for row in split.kept(classes)
    )


def _image_sizes(splits) -> str:
    """The most common sizes, and the extremes where there are more."""
    counts = Counter(size for split in splits for size in split.sides())
    shown = [f'{w} x {h} ({number})' for (w, h), number in counts.most_common(3)]
    if len(counts) > 3:
        areas = sorted(counts, key=lambda size: size[0] * size[1])
        smallest, largest = (' x '.join(map(str, size)) for size in (areas[0], areas[-1]))
        shown.append(f'{_count(len(counts) - 3, "other")}, from {smallest} to {largest}')
    return ', '.join(shown)


def _too_small(found: Found, side: int | None) -> str:
    split: Objects = found.splits['train']
    scales = {}
    for image in split.content['images']:
        long, short = sorted((image['width'], image['height']), reverse=True)
        scales[image['id']] = side / long if side else min(1333 / long, 800 / short)
    kept = split.kept(found.classes)
    sides = [min(row['bbox'][2:]) * scales[row['image_id']] for row in kept]
    few = sum(length < TOO_SMALL for length in sides)
    if few < 0.1 * len(kept):
        return ''
    return (
        f'{few} of {len(kept)} objects to train on are less than {TOO_SMALL} pixels wide or high '
        f'in the training ({side or 800} pixels): hardly any of them can be learnt; a larger '
        '--size takes longer'
    )
