"""The quick start from data to pictures, in miniature."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import coco_subset
import cv2
import numpy as np
import pytest
import quickstart
import shapes_dataset
from mmengine.config import Config
from released_files import MINI
from support.cli import UserError

from backbone import RMT, VARIANTS
from backbone.weights.match import load_backbone

ROOT = Path(__file__).parents[2]

COUNTS = dict(train=4, val=3)
QUICK = {
    'train_cfg.max_iters': 2,
    'train_cfg.val_interval': 1,
    'train_dataloader.batch_size': 1,
    'default_hooks.logger.interval': 1,
}


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp('quickstart') / 'coco'
    shapes_dataset.make_dataset(root, counts=COUNTS)
    return root


def check_outputs(
    out: Path, results: dict, pictures: tuple[str, ...] = ('predictions.png', 'curves.png')
) -> None:
    assert json.loads((out / 'results.json').read_text()) == results
    assert results['seconds']['total'] > 0
    assert results['peak_memory_bytes'] > 1e8
    for name in pictures:
        picture = cv2.imread(str(out / name))
        assert picture.shape[1] > 600
        assert np.std(picture) > 10, f'{name} is empty'


def test_detection_runs_on_a_coco_directory_with_other_classes(coco, tmp_path):
    """Class names come from the JSON, the heads follow; the results are COCO's metrics."""
    data = tmp_path / 'data'
    shutil.copytree(coco, data)
    for path in (data / 'annotations').iterdir():
        content = json.loads(path.read_text())
        content['categories'] = [
            dict(id=90 + i, name=name) for i, name in enumerate(('thing', 'other thing'))
        ]
        for entry in content['annotations']:
            entry['category_id'] = 90 + entry['category_id'] % 2
        path.write_text(json.dumps(content))
    out = tmp_path / 'out'
    # untrained, it finds nothing above the usual threshold
    options = {**QUICK, 'model.test_cfg.rcnn.score_thr': 0.0}
    results = quickstart.run(quickstart.TASKS['detection'], data, out, options)
    check_outputs(out, results)
    assert [line['step'] for line in results['evaluations']] == [1, 2]
    assert 'time' in results['metrics'], 'not the zero of an empty evaluation'
    assert {'coco/bbox_mAP', 'coco/segm_mAP', 'coco/segm_mAP_50'} <= set(results['metrics'])
    assert results['images'] == dict(train=4, val=3)
    saved = Config.fromfile(next(out.glob('*.py')))
    assert saved.model.roi_head.bbox_head.num_classes == 2
    assert saved.train_dataloader.dataset.metainfo.classes == ['thing', 'other thing']


def test_segmentation_makes_its_data_and_reports_miou(tmp_path, monkeypatch):
    task = quickstart.TASKS['segmentation']
    monkeypatch.chdir(tmp_path)
    results = quickstart.run(task, options=QUICK, counts=COUNTS)
    check_outputs(tmp_path / task.work_dir, results)
    assert [line['step'] for line in results['evaluations']] == [1, 2]
    assert 0 <= results['metrics']['mIoU'] <= 100
    assert (tmp_path / task.shapes / 'annotations/validation').is_dir()


def test_classification_cuts_the_objects_out_and_reports_accuracy(tmp_path, monkeypatch):
    task = quickstart.TASKS['classification']
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(VARIANTS, 'tiny', replace(VARIANTS['tiny'], **MINI))
    results = quickstart.run(task, options=QUICK, counts=COUNTS)
    out = tmp_path / task.work_dir
    check_outputs(out, results, ('confusion.png', 'curves.png'))
    assert [line['step'] for line in results['evaluations']] == [1, 2]
    assert 0 <= results['metrics']['accuracy/top1'] <= 100
    assert 'accuracy' in quickstart.summary(results['metrics'])
    crops = list((tmp_path / task.crops / 'val').rglob('*.jpg'))
    assert len(crops) == results['images']['val']
    # what it leaves starts the detector of the other demo
    load_backbone(RMT('tiny'), str(out / 'iter_2.pth'))


def test_the_classifier_sees_more_scenes_than_the_detector_that_it_starts(monkeypatch, tmp_path):
    class Made(Exception):
        pass

    def make(root, ade, counts):
        raise Made(counts['train'] if counts else shapes_dataset.SPLITS['train'])

    monkeypatch.setattr(shapes_dataset, 'make_dataset', make)
    scenes = {}
    for name in ('detection', 'classification'):
        with pytest.raises(Made) as found:
            quickstart.run(quickstart.TASKS[name], work_dir=str(tmp_path))
        scenes[name] = found.value.args[0]
    assert scenes['classification'] >= 3 * scenes['detection']


def test_a_long_val_split_is_cut(coco, tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, 'MOST_VAL_IMAGES', 2)
    cfg = quickstart.load_config(quickstart.TASKS['detection'], coco, tmp_path, {})
    quickstart.fit_to_coco(cfg, coco, tmp_path)
    assert cfg.val_dataloader.dataset.ann_file == cfg.val_evaluator.ann_file
    assert len(json.loads(Path(cfg.val_evaluator.ann_file).read_text())['images']) == 2


@pytest.mark.parametrize('missing', ['annotations/instances_val2017.json', 'train2017'])
def test_a_missing_part_is_named(coco, tmp_path, missing):
    data = tmp_path / 'data'
    shutil.copytree(coco, data)
    shutil.move(data / missing, tmp_path / 'away')
    with pytest.raises(UserError, match=f'{missing}: not found; --data'):
        quickstart.run(quickstart.TASKS['detection'], data, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_no_detection_counts_as_zero():
    found = quickstart.evaluations([dict(step=1, loss=1.0)], last=5)
    assert found[-1]['step'] == 5
    assert 'nan' not in quickstart.summary(found[-1])


@pytest.mark.parametrize(
    ('config', 'classes'),
    [
        ('det_configs/shapes/mask_rcnn_rmt_t_fpn_shapes.py', shapes_dataset.CLASSES),
        ('seg_configs/shapes/fpn_rmt_t_shapes.py', shapes_dataset.ADE_CLASSES),
    ],
)
def test_the_configs_name_the_classes_of_the_dataset(config, classes):
    cfg = Config.fromfile(ROOT / config)
    assert cfg.model.backbone.arch == 'tiny'
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert tuple(loader.dataset.metainfo.classes) == classes


def test_subset_keeps_images_with_objects_and_all_their_annotations(coco, tmp_path, capsys):
    content = coco_subset.read_coco(coco / 'annotations/instances_train2017.json')
    first = content['images'][0]['id']
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] != first]
    short = coco_subset.subset(content, 2)
    assert [image['id'] for image in short['images']] == [first + 1, first + 2]
    kept = [a for a in content['annotations'] if a['image_id'] in (first + 1, first + 2)]
    assert short['annotations'] == kept
    with pytest.raises(UserError, match='9 images with 1 or more objects wanted, there are 3'):
        coco_subset.subset(content, 9)
    few = coco_subset.subset(content, 1, most=4)['annotations']
    assert 1 <= sum(not a['iscrowd'] for a in few) <= 4
    bad = tmp_path / 'bad.json'
    bad.write_text('{"images": []')
    with pytest.raises(UserError, match='no COCO annotation file'):
        coco_subset.read_coco(bad)
