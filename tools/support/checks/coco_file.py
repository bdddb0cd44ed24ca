"""Annotation files in COCO's format: the whole of a small one, the beginnings of a large one."""

import json
import mmap
import os
import re
from dataclasses import dataclass

from support.cli import UserError, one_line

READ_UP_TO = 64 * 2**20
"""Bytes of an annotation file that is read twice for its own check: COCO's val, not its train."""

SKIM_ROWS, SKIM_BYTES = 100, 16 * 2**20
"""Of a larger file: how many images and annotations are looked at, and how far into each list."""


@dataclass
class CocoFile:
    """The three lists of an annotation file; ``whole`` if all of it was read."""

    path: str
    images: list
    annotations: list
    categories: list
    whole: bool


def is_large(path: str) -> bool:
    """Whether a file takes too long to be read twice."""
    return os.path.getsize(path) > READ_UP_TO


def read(path: str, whole: bool = False) -> CocoFile:
    """The lists of an annotation file; rows may still be anything.

    Args:
        whole: read all of a large one too.

    Raises:
        UserError: it is no JSON, or lacks a list; annotations may be absent.
    """
    what = f'{path}: no COCO annotation file'
    large = is_large(path) and not whole
    try:
        content = _skim(path) if large else _read(path)
    except (ValueError, RecursionError) as error:  # a JSONDecodeError and a UnicodeDecodeError too
        raise UserError(f'{what}: not JSON: {one_line(error)}') from error
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from error
    if not isinstance(content, dict):
        raise UserError(f'{what}: a JSON {type(content).__name__}, not an object')
    hint = '' if large else f'; its keys are {sorted(content)[:8]}'
    content.setdefault('annotations', [])  # COCO's test sets have none
    for part in ('images', 'annotations', 'categories'):
        if not isinstance(content.get(part), list):
            raise UserError(f'{what}: no list "{part}"{hint}')
    return CocoFile(
        path, content['images'], content['annotations'], content['categories'], not large
    )


def _read(path: str) -> object:
    with open(path, 'rb') as file:
        content = file.read()
    if content.startswith(b'\xef\xbb\xbf'):
        raise UserError(
            f'{path}: begins with a byte order mark, which pycocotools does not read; remove it: '
            rf"sed -i '1s/^\xef\xbb\xbf//' '{path}'"
        )
    return json.loads(content.decode('utf-8'))


def _skim(path: str) -> dict[str, list]:
    """The categories and the first images and annotations."""
    what = f'{path}: no COCO annotation file'
    with (
        open(path, 'rb') as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        if not content[:64].lstrip().startswith(b'{'):
            raise UserError(f'{what}: not JSON: it begins with {content[:16]!r}, not with {{')
        if not content[-64:].rstrip().endswith(b'}'):
            raise UserError(f'{what}: cut short: it ends with {content[-16:]!r}, not with }}')
        parts = {'images': SKIM_ROWS, 'annotations': SKIM_ROWS, 'categories': None}
        rows = {part: _first_rows(content, part, most) for part, most in parts.items()}
        return {part: found for part, found in rows.items() if found is not None}


def _first_rows(content: mmap.mmap, part: str, most: int | None) -> list | None:
    """At most so many rows of a list of a JSON file, None where it has no such list.

    Raises:
        ValueError: the list begins with what is not JSON.
    """
    found = re.search(rb'"%s"\s*:\s*\[' % part.encode(), content)
    if not found:
        return None
    text = content[found.end() : found.end() + SKIM_BYTES].decode(errors='replace')
    decoder, between = json.JSONDecoder(), re.compile(r'[\s,]*')
    rows, at = [], between.match(text).end()
    while text[at : at + 1] not in (']', '') and (most is None or len(rows) < most):
        try:
            row, at = decoder.raw_decode(text, at)
        except ValueError:
            if not rows:
                raise
            break  # longer than what is looked at, or damaged there: the data set will tell
        rows.append(row)
        at = between.match(text, at).end()
    return rows
