"""What mmdet would train wrongly, or not at all, is named; what it drops is counted."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from own_data import OwnData
from pycocotools import mask as masks
from support import checks
from support.checks.coco import check_coco
from support.checks.dataset import Leaf
from tiny_data import SIZES

CLASSES = 'train_dataloader.dataset.metainfo.classes'
NO_MASKS = [
    f'{split}_dataloader.dataset.pipeline.{step}.with_mask=False'
    for split, step in (('train', 1), ('val', 2))
]


def second(change: Callable[[dict], Any]) -> Callable[[dict], Any]:
    """Changes the second annotation."""
    return lambda content: change(content['annotations'][1])


def rle(**changes: Any) -> dict:
    """A compressed RLE of the first image."""
    mask = masks.encode(np.asfortranarray(np.tri(*SIZES[0], dtype=np.uint8)))
    return {'size': list(SIZES[0]), 'counts': mask['counts'].decode(), **changes}


def counts(*numbers: int) -> dict:
    """An uncompressed RLE of the first image."""
    return {'size': list(SIZES[0]), 'counts': list(numbers)}


def test_good_data_pass_and_are_counted(own_coco: OwnData) -> None:
    splits = ('train', 'val', 'test')
    assert own_coco.said(splits=splits) == [
        f'{split}_dataloader.dataset: 4 images, 8 objects' for split in splits
    ]


@pytest.mark.parametrize('field', ['id', 'image_id', 'category_id', 'bbox', 'area', 'segmentation'])
def test_annotation_without_a_field(field: str, own_coco: OwnData) -> None:
    own_coco.edit(second(lambda row: row.pop(field)))
    line = own_coco.refusal()
    assert f'{own_coco.annotations()}: annotations[1]' in line
    assert f'has no {field}' in line


@pytest.mark.parametrize(
    'value',
    [
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [1, 2, 3, float('nan')],
        [1, 2, float('inf'), 4],
        ['1', '2', '3', '4'],
        [1, 2, 3, None],
        [1, 2, 3, True],
        [-1e300, 0, 2e300, 40],
        [0, 0, 10**400, 40],
        [[1, 2, 3, 4]],
        {'x': 1},
        None,
        'box',
    ],
)
def test_box_that_is_not_four_numbers(value: Any, own_coco: OwnData) -> None:
    own_coco.edit(second(lambda row: row.update(bbox=value)))
    line = own_coco.refusal()
    assert 'annotations[1] (id 2, image 000000000001.jpg) has bbox=' in line
    assert 'it must be four numbers' in line


@pytest.mark.parametrize(
    'value',
    [
        None,
        [],
        [4, 6, 40, 6, 40, 50],
        [[]],
        [[4, 6, 40, 6]],
        [[4, 6, 40, 6, 40, 50, 4]],
        [[4, 6, 40, 6, 40, float('nan')]],
        [[4, 6, 40, 6, 40, '50']],
        [[4, 6, 40, 6, 1e9, 50]],
        [[[4, 6], [40, 6], [40, 50]]],
        [[4, 6, 40, 6, 40, 50], 7],
        'polygon',
        {},
        {'counts': [10, 20]},
        counts(10, 20),
        counts(-1, 96 * 128 + 1),
        {'size': [128, 96], 'counts': [96 * 128]},
        rle(size=[128, 96]),
        rle(counts=''),
        rle(counts='\x00\x01'),
        rle(counts='o' * 8),
        rle(counts=rle()['counts'][:-4]),
        rle(counts=rle()['counts'] + '1'),
        rle(counts=None),
    ],
)
def test_mask_that_is_missing_where_masks_are_trained(value: Any, own_coco: OwnData) -> None:
    own_coco.edit(second(lambda row: row.update(segmentation=value)))
    line = own_coco.refusal()
    assert 'annotations[1] (id 2, image 000000000001.jpg) has ' in line


@pytest.mark.parametrize(
    'value',
    [
        [[4, 6, 40, 6, 40, 50]],
        [[4.5, 6, 40, 6, 40, 50], [60, 60, 70, 60, 70, 70, 60, 70]],
        counts(10, 20, 96 * 128 - 30),
        counts(0, 96 * 128),
        rle(),
    ],
)
def test_masks_of_every_kind_pass(value: Any, own_coco: OwnData) -> None:
    own_coco.edit(second(lambda row: row.update(segmentation=value)))
    own_coco.check()


def test_masks_that_nothing_reads_are_not_looked_at(own_coco: OwnData) -> None:
    for split in ('train', 'val'):
        own_coco.edit(
            lambda content: [a.pop('segmentation') for a in content['annotations']], split
        )
    own_coco.check(*NO_MASKS, "val_evaluator.metric=['bbox']")


def test_masks_of_objects_that_are_dropped_are_not_looked_at(own_coco: OwnData) -> None:
    own_coco.edit(second(lambda row: row.update(segmentation=[], bbox=[4, 6, 0, 40])))
    own_coco.check()


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (dict(image_id=99), 'has image_id=99; no image has that id'),
        (dict(category_id=99), 'has category_id=99; no category has that id'),
        (dict(image_id=[1]), 'has image_id=[1]'),
        (dict(category_id=None), 'has category_id=None'),
        (dict(id={}), 'has id={}'),
        (dict(id=1), 'annotations[0] and annotations[1] have the same id 1'),
        (dict(iscrowd='0'), "has iscrowd='0'"),
        (dict(area='large'), "has area='large'"),
    ],
)
def test_rows_that_lead_nowhere(change: dict, expected: str, own_coco: OwnData) -> None:
    own_coco.edit(second(lambda row: row.update(change)))
    assert expected in own_coco.refusal()


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (dict(id=1), 'images[0] and images[1] have the same id 1'),
        (dict(file_name=7), 'images[1] has file_name=7'),
        (dict(width='128'), "images[1] has width='128'"),
        (dict(height=None), 'images[1] has height=None'),
        (dict(height=0), 'images[1] has height=0'),
    ],
)
def test_images_that_can_not_be_used(change: dict, expected: str, own_coco: OwnData) -> None:
    own_coco.edit(lambda content: content['images'][1].update(change))
    assert expected in own_coco.refusal()


USELESS = {
    'narrower than 1 pixel': lambda row: row.update(bbox=[0.1, 0.2, 0.4, 0.5]),  # of 0 to 1
    'narrower than 1 pixel, too': lambda row: row.update(bbox=[4, 6, 0, 40]),
    'of area 0': lambda row: row.update(area=0),
    'crowds': lambda row: row.update(iscrowd=1),
    'outside their image': lambda row: row.update(bbox=[500, 500, 40, 40]),
    'marked ignore': lambda row: row.update(ignore=1),
}


@pytest.mark.parametrize('reason', USELESS)
def test_nothing_left_to_train_on_is_refused_with_the_reason(
    reason: str, own_coco: OwnData
) -> None:
    own_coco.edit(lambda content: [USELESS[reason](row) for row in content['annotations']])
    line = own_coco.refusal()
    assert (
        f'{own_coco.annotations()}: no object to train on: of 8, 8 {reason.split(",")[0]}' in line
    )


def test_normalised_boxes_are_called_so(own_coco: OwnData) -> None:
    own_coco.edit(
        lambda content: [USELESS['narrower than 1 pixel'](r) for r in content['annotations']]
    )
    assert 'must be in pixels, not in parts of the image' in own_coco.refusal()


def test_images_that_are_all_too_small_for_the_filter(own_coco: OwnData) -> None:
    line = own_coco.refusal('train_dataloader.dataset.filter_cfg.min_size=1000')
    assert '8 in images smaller than 1000 pixels' in line


def test_filter_that_is_no_number(own_coco: OwnData) -> None:
    line = own_coco.refusal('train_dataloader.dataset.filter_cfg.min_size=small')
    assert line == "train_dataloader.dataset.filter_cfg.min_size='small': must be a number"


def test_what_is_dropped_is_counted_by_reason(own_coco: OwnData) -> None:
    def spoil(content: dict) -> None:
        rows = content['annotations']
        for row in rows[:3]:
            row['bbox'] = [0.1, 0.2, 0.4, 0.5]
        rows[3]['iscrowd'] = 1

    own_coco.edit(spoil)
    assert own_coco.said()[0] == (
        'train_dataloader.dataset: 4 images, 8 objects, of which train nothing: 3 narrower than '
        '1 pixel, 1 crowds; 2 images without an object to train'
    )


def test_counts_are_those_of_the_data_set_that_mmdet_builds(own_coco: OwnData) -> None:
    def spoil(content: dict) -> None:
        for row, change in zip(content['annotations'], USELESS.values(), strict=False):
            change(row)

    own_coco.edit(spoil)
    dataset = own_coco.cfg().train_dataloader.dataset
    init_default_scope('mmdet')
    built = DATASETS.build(dataset)
    infos = [built.get_data_info(i) for i in range(len(built))]
    trained = [[i for i in info['instances'] if not i['ignore_flag']] for info in infos]
    _, tally = check_coco(Leaf('train', dataset), str(own_coco.annotations()))
    assert tally.usable == sum(map(len, trained)) == 2
    assert tally.images - tally.idle == sum(map(bool, trained))


@pytest.mark.parametrize(
    'change', [lambda c: c.pop('annotations'), lambda c: c['annotations'].clear()]
)
def test_background_images_beside_others_pass(
    change: Callable[[dict], Any], own_coco: OwnData
) -> None:
    """A part of a ConcatDataset may have no object: another has."""
    own_coco.edit(change, 'val')
    cfg = own_coco.cfg()
    parts = [copy.deepcopy(cfg.train_dataloader.dataset) for _ in range(2)]
    parts[1].ann_file = 'annotations/instances_val2017.json'
    parts[1].filter_cfg = dict(filter_empty_gt=False)
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    checks.check_data(cfg, ('train',))


def test_class_names_that_the_file_has_not(own_coco: OwnData) -> None:
    line = own_coco.refusal(f"{CLASSES}=['person','wombat']")
    assert "has no category 'wombat'" in line
    assert CLASSES in line


def test_classes_in_another_order_than_the_files(own_coco: OwnData) -> None:
    assert 'in that order' in own_coco.refusal(f"{CLASSES}=['car','person']")


def test_category_twice_in_the_file(own_coco: OwnData) -> None:
    own_coco.edit(lambda content: content['categories'].append(dict(id=1000, name='person')))
    line = own_coco.refusal()
    assert "categories[0] and categories[80] have the same name 'person'" in line


def test_category_twice_that_no_class_means_passes(own_coco: OwnData) -> None:
    more = [dict(id=1000 + i, name='wombat') for i in range(2)]
    own_coco.edit(lambda content: content['categories'].extend(more))
    own_coco.check()


def test_category_id_twice(own_coco: OwnData) -> None:
    own_coco.edit(lambda content: content['categories'].append(dict(id=1, name='wombat')))
    assert 'categories[0] and categories[80] have the same id 1' in own_coco.refusal()


def test_gaps_in_ids_pass(own_coco: OwnData) -> None:
    def spread(content: dict) -> None:
        for part in ('images', 'annotations', 'categories'):
            for row in content[part]:
                row['id'] *= 100
        for row in content['annotations']:
            row['image_id'] *= 100
            row['category_id'] *= 100

    for split in ('train', 'val'):
        own_coco.edit(spread, split)
    own_coco.check()
