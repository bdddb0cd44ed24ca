"""The metrics read annotation files by themselves, and more of them than the data sets do."""

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from own_data import OwnData
from support import checks


def every(change: Callable[[dict], Any]) -> Callable[[dict], Any]:
    """Changes every annotation."""
    return lambda content: [change(row) for row in content['annotations']]


def renumber(content: dict) -> None:
    for i, row in enumerate(content['annotations']):
        row['id'] = i


def test_iscrowd_is_needed_by_the_evaluation_alone(own_coco: OwnData) -> None:
    own_coco.edit(every(lambda row: row.pop('iscrowd')))
    own_coco.check()
    own_coco.edit(every(lambda row: row.pop('iscrowd')), 'val')
    line = own_coco.refusal()
    assert f'{own_coco.annotations("val")}: annotations[0]' in line
    assert 'has no iscrowd; evaluation needs it: 0, or 1 for a crowd' in line


def test_ids_from_0_make_wrong_ap_in_an_evaluation_alone(own_coco: OwnData) -> None:
    own_coco.edit(renumber)
    own_coco.check()
    own_coco.edit(renumber, 'val')
    line = own_coco.refusal()
    assert 'annotations[0] (id 0, image 000000000001.jpg) has id=0' in line
    assert 'number from 1' in line


def test_masks_are_needed_by_segm_alone(own_coco: OwnData) -> None:
    own_coco.edit(lambda content: content['annotations'][1].update(segmentation=[]), 'val')
    boxes = 'val_dataloader.dataset.pipeline.2.with_mask=False'
    assert 'has segmentation=[]' in own_coco.refusal(boxes)
    own_coco.check(boxes, "val_evaluator.metric=['bbox']")


def test_objects_that_are_dropped_are_evaluated_all_the_same(own_coco: OwnData) -> None:
    narrow = dict(bbox=[4, 6, 0, 40], segmentation=[[4, 6, 4, 46]])
    own_coco.edit(lambda content: content['annotations'][1].update(narrow), 'val')
    assert 'has a polygon of 4 numbers' in own_coco.refusal()


@pytest.mark.parametrize('part', ['images', 'categories'])
def test_ids_of_two_kinds(part: str, own_coco: OwnData) -> None:
    own_coco.edit(lambda content: content[part].append({**content[part][-1], 'id': 'x'}), 'val')
    # the name of a category may be there once
    own_coco.edit(lambda content: content[part][-1].update(name='wombat'), 'val')
    assert f'{part} have ids of two kinds' in own_coco.refusal()


def test_val_without_objects_warns_of_the_ap(
    own_coco: OwnData, capsys: pytest.CaptureFixture
) -> None:
    own_coco.edit(lambda content: content['annotations'].clear(), 'val')
    own_coco.check()
    assert f'{own_coco.annotations("val")}: has no object to evaluate: AP will be -1' in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    'change', [lambda c: c.pop('annotations'), lambda c: c.update(annotations=[])]
)
def test_test_set_without_annotations_passes(
    change: Callable[[dict], Any], own_coco: OwnData, capsys: pytest.CaptureFixture
) -> None:
    """As COCO's test-dev, of which only results are written."""
    own_coco.edit(change, 'val')
    only = ('test_evaluator.format_only=True', 'test_evaluator.outfile_prefix=out')
    own_coco.check(*only, splits=('test',))
    assert capsys.readouterr().err == ''


def test_metric_that_reads_another_file_than_the_data_set(own_coco: OwnData) -> None:
    own_coco.edit(lambda c: [i.update(file_name=f'other/{i["file_name"]}') for i in c['images']])
    line = own_coco.refusal(f'val_evaluator.ann_file={own_coco.annotations()}', splits=('val',))
    assert 'change both' in line
    assert 'has no image 000000000001.jpg of id 1' in line


def test_metric_that_reads_the_same_images_from_another_file_passes(own_coco: OwnData) -> None:
    copied = own_coco.root / 'with_masks.json'
    shutil.copy(own_coco.annotations('val'), copied)
    own_coco.check(f'val_evaluator.ann_file={copied}')
    content = json.loads(copied.read_text())
    content['annotations'][0]['bbox'] = None
    copied.write_text(json.dumps(content))
    assert f'{copied}: annotations[0]' in own_coco.refusal(f'val_evaluator.ann_file={copied}')


def test_absent_file_of_a_metric(own_coco: OwnData) -> None:
    line = own_coco.refusal('val_evaluator.ann_file=/absent.json')
    assert line.startswith('val_evaluator.ann_file=/absent.json: no such file')


def test_every_metric_of_a_list_is_looked_at(own_coco: OwnData) -> None:
    own_coco.edit(every(lambda row: row.pop('iscrowd')), 'val')
    cfg = own_coco.cfg()
    cfg.val_evaluator = [dict(type='CocoMetric', metric='bbox'), cfg.val_evaluator]
    with pytest.raises(checks.UserError, match='has no iscrowd'):
        checks.check_data(cfg, ('val',))


def test_metric_without_a_file_needs_no_iscrowd(own_coco: OwnData) -> None:
    """It makes its truth of the data set's objects."""
    own_coco.edit(every(lambda row: row.pop('iscrowd')), 'val')
    cfg = own_coco.cfg()
    cfg.val_evaluator.pop('ann_file')
    checks.check_data(cfg, ('val',))
