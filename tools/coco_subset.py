#!/usr/bin/env python
"""Write the annotations of some images of a COCO file to a new one, which evaluates by itself.

mmdet's `indices` shortens a dataset, but CocoMetric goes on asking for every image of the
annotation file. With a shorter file both agree:

    python tools/coco_subset.py data/coco/annotations/instances_train2017.json eight.json \\
        --count 8 --most-objects 7
"""

import argparse
import json
import math
import os
from collections import Counter
from pathlib import Path

from support import cli
from support.files import atomic_write


def read_coco(path: str | os.PathLike) -> dict:
    """The content of an annotation file with the three lists that this module needs."""
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
        for part in ('images', 'annotations', 'categories'):
            if not isinstance(content[part], list):
                raise TypeError(f'"{part}" is no list')
    except OSError as error:
        raise cli.UserError(f'{path}: {error.strerror}; a COCO-format file is needed') from error
    except (ValueError, KeyError, TypeError) as error:
        raise cli.UserError(f'{path}: no COCO annotation file: {cli.one_line(error)}') from error
    return content


def subset(content: dict, count: int, most: float = math.inf) -> dict:
    """The first `count` images with 1 to `most` objects (crowds apart), annotations and all."""
    objects = Counter(a['image_id'] for a in content['annotations'] if not a.get('iscrowd'))
    images = [i for i in content['images'] if 1 <= objects[i['id']] <= most][:count]
    if len(images) < count:
        limit = f'1 to {most}' if most < math.inf else '1 or more'
        raise cli.UserError(f'{count} images with {limit} objects wanted, there are {len(images)}')
    kept = {image['id'] for image in images}
    annotations = [a for a in content['annotations'] if a['image_id'] in kept]
    return {**content, 'images': images, 'annotations': annotations}


def write_coco(content: dict, path: str | os.PathLike) -> None:
    """Write an annotation file; what is there stays whole until the new one is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(content))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('annotations', help='a COCO annotation file')
    parser.add_argument('out', help='file to write')
    parser.add_argument('--count', type=int, required=True, help='images to keep')
    parser.add_argument('--most-objects', type=int, default=math.inf, help='leave fuller ones out')
    args = parser.parse_args()
    if args.count < 1:
        raise cli.UserError(f'--count {args.count}: must be at least 1')
    content = subset(read_coco(args.annotations), args.count, args.most_objects)
    try:
        write_coco(content, args.out)
    except OSError as error:
        raise cli.UserError(f'{args.out}: {error.strerror}') from error
    print(f'{args.out}: {args.count} images, {len(content["annotations"])} annotations')


if __name__ == '__main__':
    cli.run(main)
