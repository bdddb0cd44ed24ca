"""Three-image data sets in the formats of the readers of mmdet and mmseg, where a config says."""

import csv
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mmengine.registry import DATASETS
from support.checks.dataset import Leaf, path_of
from tiny_data import write_image

HEIGHT, WIDTH = 48, 64
NAMES = ('bathroom_1', 'kitchen_2', 'study_3')


def write(leaf: Leaf) -> None:
    """Write the files that a data set's config names, in the format of its class."""
    for name in ('ann_file', *(f'data_prefix.{p}' for p in leaf.config.get('data_prefix') or {})):
        path = path_of(leaf.config, name)
        if path and not Path(path).suffix:
            os.makedirs(path, exist_ok=True)
        elif path and not Path(path).exists():
            put(path, '{}')
    writer = next((WRITERS[k.__name__] for k in leaf.kind.__mro__ if k.__name__ in WRITERS), None)
    if writer:
        writer(leaf)


def picture(path: str | Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    if Path(path).suffix == '.npy':
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        np.save(path, pixels)
    else:
        write_image(Path(path), pixels)


def put(path: str | Path, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def coco(leaf: Leaf) -> None:
    """COCO's, with gaps in the ids of the categories; a category more than there are classes."""
    classes = [*(leaf.classes or ['thing', 'other']), 'no class']
    folder, stuff = (path_of(leaf.config, f'data_prefix.{name}') for name in ('img', 'seg'))
    images, annotations = [], []
    for i, name in enumerate(NAMES, start=1):
        picture(f'{folder}/{name}.jpg')
        if stuff:
            labels = np.full((HEIGHT, WIDTH), 182, np.uint8)
            labels[:9] = 255
            write_image(Path(f'{stuff}/{name}.png'), labels)
        images.append(dict(id=10 * i, file_name=f'{name}.jpg', height=HEIGHT, width=WIDTH))
        annotations.append(
            dict(
                id=i, image_id=10 * i, category_id=7 + 3 * (i % 2), iscrowd=0,
                bbox=[4, 6, 40, 40], area=1600, segmentation=[[4, 6, 44, 6, 44, 46, 4, 46]],
            )
        )  # fmt: skip
    categories = [dict(id=7 + 3 * i, name=name) for i, name in enumerate(classes)]
    put(leaf.path, json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def edit(leaf: Leaf, change: Callable[[dict], object]) -> None:
    content = json.loads(Path(leaf.path).read_text())
    change(content)
    put(leaf.path, json.dumps(content))


def lvis(leaf: Leaf) -> None:
    """LVIS names an image by its address."""
    coco(leaf)

    def change(content: dict) -> None:
        content['categories'] = content['categories'][:-1]
        for image in content['images']:
            name = image.pop('file_name')
            image['coco_url'] = f'http://images.cocodataset.org/train2017/{name}'
            picture(f'{path_of(leaf.config, "data_prefix.img")}/train2017/{name}')
            if leaf.kind.__name__ == 'LVISV05Dataset':
                image['file_name'] = f'train2017/{name}'
        for row in content['annotations']:
            del row['iscrowd']

    edit(leaf, change)


def v3det(leaf: Leaf) -> None:
    """V3Det's classes are in a file."""
    folder = leaf.config['data_root']
    put(f'{folder}/annotations/category_name_13204_v3det_2023_v1.txt', 'thing\nother\n')
    coco(leaf)


def panoptic(leaf: Leaf) -> None:
    """Panoptic: objects are segments of a coloured picture; ids may be there twice."""
    coco(leaf)

    def change(content: dict) -> None:
        for category in content['categories']:
            category['isthing'] = 1
        content['categories'] = content['categories'][:-1]
        for image, row in zip(content['images'], content['annotations'], strict=True):
            row.pop('segmentation')
            row['segments_info'] = [{**row, 'id': 5}]
            for name in ('id', 'bbox', 'area', 'category_id', 'iscrowd'):
                row.pop(name)
            colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            colours[6:46, 4:44, 2] = 5  # red counts ones
            stem = Path(image['file_name']).stem
            write_image(Path(path_of(leaf.config, 'data_prefix.seg')) / f'{stem}.png', colours)

    edit(leaf, change)


def label_maps(leaf: Leaf) -> None:
    """A folder of images and one of label maps, of the suffixes of the class."""
    if leaf.path:
        put(leaf.path, '\n'.join(NAMES))
    built = DATASETS.build({**leaf.config, 'lazy_init': True, 'pipeline': []})
    reduces = getattr(built, 'reduce_zero_label', False)
    first = reduces or any(getattr(step, 'reduce_zero_label', False) for step in leaf.steps)
    for name in NAMES:
        picture(built.data_prefix['img_path'] + f'/{name}{built.img_suffix}')
        labels = np.full((HEIGHT, WIDTH), first, np.uint8)
        labels[:, :9], labels[:, -9:] = 255, first + 1
        maps = built.data_prefix.get('seg_map_path')
        maps = maps or built.data_prefix.get('depth_map_path')
        write_image(Path(maps) / f'{name}{built.seg_map_suffix}', labels)


def xml(leaf: Leaf) -> None:
    """Pascal VOC's."""
    put(leaf.path, '\n'.join(NAMES))
    built = DATASETS.build({**leaf.config, 'lazy_init': True, 'pipeline': []})
    root = built.sub_data_root or path_of(leaf.config, 'data_prefix.img')
    for name in NAMES:
        for folder in ('JPEGImages', 'folder'):
            picture(f'{root}/{folder}/{name}.jpg')
        corners = ''.join(f'<{k}>{v}</{k}>' for k, v in zip(
            ('xmin', 'ymin', 'xmax', 'ymax'), (4, 6, 44, 46), strict=True
        ))  # fmt: skip
        put(
            f'{root}/Annotations/{name}.xml',
            f'<annotation><folder>folder</folder><size><width>{WIDTH}</width><height>{HEIGHT}'
            f'</height></size><object><name>{leaf.classes[0]}</name><bndbox>{corners}</bndbox>'
            '</object></annotation>',
        )


def open_images(leaf: Leaf) -> None:
    """OpenImages': tables, boxes in parts of the image, sizes in a pickle of their own."""
    root, config = Path(leaf.config['data_root']), leaf.config
    put(root / config['label_file'], '/m/1,Thing\n')
    put(root / config['hierarchy_file'], json.dumps(dict(LabelName='/m/0', Subcategory=[])))
    with open(root / config['ann_file'], 'w', newline='') as file:
        rows = [[name, 'x', '/m/1', 1, 0.1, 0.9, 0.1, 0.9, 0, 0, 0, 0, 0] for name in NAMES]
        csv.writer(file).writerows([['head'] * 13, *rows])
    if 'image_level_ann_file' in config:
        put(root / config['image_level_ann_file'], 'ImageID,Source,LabelName,Confidence\n')
    metas = [dict(filename=f'{name}.jpg', ori_shape=(HEIGHT, WIDTH, 3)) for name in NAMES]
    (root / config['meta_file']).write_bytes(pickle.dumps(metas))
    for name in NAMES:
        picture(f'{path_of(config, "data_prefix.img")}/{name}.jpg')


WRITERS = {
    'CocoPanopticDataset': panoptic,
    'LVISV05Dataset': lvis,
    'LVISV1Dataset': lvis,
    'V3DetDataset': v3det,
    'CocoDataset': coco,
    'BaseSegDataset': label_maps,
    'XMLDataset': xml,
    'OpenImagesDataset': open_images,
}
"""By the nearest class that a data set inherits from."""
