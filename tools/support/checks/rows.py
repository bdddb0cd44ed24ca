"""What the rows of a COCO file must be: a table a list, and what makes mmdet drop an object."""

from collections.abc import Callable
from typing import Any, NamedTuple

FAR = 1e6
"""Pixels: what lies further out is no coordinate, and pycocotools asks for memory by it."""


def is_id(value: Any) -> bool:
    """Whether it tells rows apart, here and in NumPy."""
    if type(value) in (int, float):
        return abs(value) < 2**63
    return isinstance(value, str)


def is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ''


def is_size(value: Any) -> bool:
    return type(value) in (int, float) and 1 <= value <= FAR and value == int(value)


def is_area(value: Any) -> bool:
    return type(value) in (int, float) and -(FAR**2) <= value <= FAR**2


def is_flag(value: Any) -> bool:
    return type(value) in (int, float, bool) and value in (0, 1)


def is_coordinates(values: Any) -> bool:
    """Whether it is a list of numbers near the image; NaN is not."""
    return (
        isinstance(values, list)
        and set(map(type, values)) <= {int, float}
        and all(-FAR <= value <= FAR for value in values)
    )


def is_box(value: Any) -> bool:
    return is_coordinates(value) and len(value) == 4


class Field(NamedTuple):
    """A field of a row: what it must be, as a test and in words."""

    name: str
    fits: Callable[[Any], bool]
    must: str
    optional: bool = False


ID = Field('id', is_id, 'a number or a text')
IMAGE = (
    ID,
    Field('file_name', is_name, 'the name of a file'),
    Field('width', is_size, 'a whole number of pixels'),
    Field('height', is_size, 'a whole number of pixels'),
)
CATEGORY = (ID, Field('name', is_name, 'a name'))
KEYS = (
    ID,
    Field('image_id', is_id, "an image's id"),
    Field('category_id', is_id, "a category's id"),
)
BOX = (
    Field('bbox', is_box, 'four numbers: left, top, width, height in pixels'),
    Field('area', is_area, 'a number of pixels'),
)
MASK = (Field('segmentation', lambda value: True, ''),)
TRAINED = (
    Field('iscrowd', lambda value: value is None or is_flag(value), '0 or 1', optional=True),
)
EVALUATED = (
    Field('iscrowd', is_flag, '0 or 1'),
    Field(
        'id',
        lambda value: type(value) in (int, float) and value != 0,
        'a number other than 0, which pycocotools takes for "nothing found": number from 1',
    ),
)


def problem(row: Any, fields: tuple[Field, ...]) -> str | None:
    """What is wrong with a row, None where nothing is."""
    if not isinstance(row, dict):
        return f'is no object: {_short(row)}'
    lacking = [field.name for field in fields if field.name not in row and not field.optional]
    if lacking:
        return f'has no {", ".join(lacking)}{_ADVICE.get(lacking[0], "")}'
    for field in fields:
        if field.name in row and not field.fits(row[field.name]):
            return f'has {field.name}={_short(row[field.name])}; it must be {field.must}'
    return None


_ADVICE = {
    'segmentation': ' (boxes alone can train RetinaNet)',
    'iscrowd': '; evaluation needs it: 0, or 1 for a crowd',
}


def mask_problem(mask: Any, height: int, width: int) -> str | None:
    """What is wrong with a segmentation of an image of that size, None where nothing is."""
    shown = f'has segmentation={_short(mask)}'
    if isinstance(mask, dict):
        return _rle_problem(mask, height, width)
    if not isinstance(mask, list):
        return f'{shown}; it must be a list of polygons, or RLE'
    if not mask:
        return f'{shown}; give its polygons, or leave the object out'
    if is_coordinates(mask):
        return f'{shown}; write a list of polygons: [[x, y, ...]]'
    for polygon in mask:
        if not is_coordinates(polygon):
            return f'has a polygon {_short(polygon)}; it must be a list of numbers x, y, ...'
        if len(polygon) < 6 or len(polygon) % 2:
            wrong = f'has a polygon of {len(polygon)} numbers'
            return f'{wrong}; it must have three corners or more, of two numbers each'
    return None


def _rle_problem(mask: dict, height: int, width: int) -> str | None:
    counts, size = mask.get('counts'), mask.get('size')
    if size != [height, width] or not all(type(side) is int for side in size):
        return (
            f'has an RLE of size {_short(size)}; it must be that of the image, height and width: '
            f'[{height}, {width}]'
        )
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    if (
        isinstance(counts, list)
        and all(type(count) is int and count >= 0 for count in counts)
        and sum(counts) == height * width
    ):
        return None
    shown = _short(mask.get('counts'))
    return f'has RLE counts {shown}, which do not add up to the pixels of its size'


def _uncompressed(text: str) -> list[int] | None:
    """The counts of an RLE that pycocotools compressed, None for other texts.

    A count has five bits a character, the lowest first, and a sixth where more follow; from the
    third on it is the difference to the last but one.
    """
    counts, value, shift = [], 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << (shift - 4)  # its sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return None if shift else counts


CROWD, OTHER_CLASS, TOO_NARROW = 'crowds', 'of other classes', 'narrower than 1 pixel'


def dropped(row: dict, height: int, width: int, classes: set, min_size: float = 0) -> str | None:
    """Why mmdet trains nothing with an object of such an image, None where it does."""
    left, top, w, h = row['bbox']
    for reason, holds in (
        ('marked ignore', row.get('ignore')),
        (f'in images smaller than {min_size} pixels', min(height, width) < min_size),
        (TOO_NARROW, w < 1 or h < 1),
        ('outside their image', min(left + w, width) <= max(left, 0)),
        ('outside their image', min(top + h, height) <= max(top, 0)),
        ('of area 0', row['area'] <= 0),
        (OTHER_CLASS, row['category_id'] not in classes),
        (CROWD, row.get('iscrowd')),
    ):
        if holds:
            return reason
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
