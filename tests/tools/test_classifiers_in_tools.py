"""Classifiers in the commands: trained, tested, shown, counted; bad data ends in one line."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, call_tool
from released_files import MINI, assert_holds

from backbone import RMT, VARIANTS
from backbone.weights.match import load_backbone

CONFIG = 'cls_configs/rmt_t_folder.py'
CLASSES = ('cat', 'dog', 'fox')


def write_folders(root: Path, **counts: int) -> Path:
    """Noise images of 40 x 50 pixels, CLASS=how many, the classes of other brightness."""
    rng = np.random.default_rng(0)
    for k, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture = rng.integers(80 * k, 80 * k + 60, (40, 50, 3), dtype=np.uint8)
            cv2.imwrite(str(root / name / f'{i}.png'), picture)
    return root


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of five images; to read, not to change."""
    return write_folders(tmp_path_factory.mktemp('photos'), **dict.fromkeys(CLASSES, 5))


def options(root: Path, *more: str) -> list[str]:
    """``--cfg-options`` for two steps at 64 pixels."""
    return [
        '--cfg-options',
        f'data_root={root}',
        'num_classes=3',
        'train_cfg.max_epochs=1',
        'train_dataloader.batch_size=6',
        'train_dataloader.dataset.pipeline.1.scale=64',
        *(f'{split}_dataloader.dataset.pipeline.1.scale=72' for split in ('val', 'test')),
        *(f'{split}_dataloader.dataset.pipeline.2.crop_size=64' for split in ('val', 'test')),
        *(f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')),
        *(f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')),
        'randomness.seed=0',
        *more,
    ]


@pytest.fixture(scope='module')
def small_rmt() -> Iterator[None]:
    """A small RMT is called RMT-T meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, 'tiny', replace(VARIANTS['tiny'], **MINI))
        yield


@pytest.fixture(scope='module')
def trained(photos: Path, small_rmt: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of a run, which averaged its weights."""
    work_dir = tmp_path_factory.mktemp('run')
    average = "custom_hooks=[{'type':'BatchEMAHook','momentum':0.5,'base_batch_size':6}]"
    config = work_dir / 'averaged.py'
    config.write_text(f'_base_ = {str(ROOT / CONFIG)!r}\n{average}\n')
    arguments = (config, '--work-dir', work_dir, *options(photos))
    assert call_tool('train', *arguments) == 0
    return work_dir


def checkpoint(work_dir: Path) -> Path:
    return next(work_dir.glob('best_accuracy_top1_epoch_1.pth'))


def test_training_leaves_the_average_and_the_best_and_says_what_it_does(trained, photos):
    (log,) = trained.glob('*/*.log')
    said = log.read_text()
    assert 'averaged with a decay of 0.5 a step of 6 images' in said
    assert 'accuracy/top1' in said
    assert 'starts from scratch (random weights).' in said
    assert 'pretrained=FILE' not in said  # pretraining is what makes such a file
    file = torch.load(trained / 'epoch_1.pth', weights_only=False)
    assert file['meta']['dataset_meta']['classes'] == CLASSES
    name = 'backbone.layers.0.blocks.0.ffn.fc1.weight'
    weights = file['ema_state_dict'][f'module.{name}'], file['state_dict'][name]
    assert not torch.equal(*weights)


def test_what_training_leaves_goes_into_a_backbone_whole(trained):
    path = checkpoint(trained)
    model = RMT(MINI)
    load_backbone(model, str(path))
    weights = torch.load(path, weights_only=False)['state_dict']
    bare = {n.removeprefix('backbone.'): t for n, t in weights.items()}
    assert_holds(model, bare, but='extra_norms.')


def test_testing_writes_accuracy_predictions_and_pictures(trained, photos, tmp_path):
    arguments = (
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'out.pkl',
        '--show-dir',
        tmp_path / 'x',
    )
    config = trained / 'averaged.py'  # whose hook averages, and must not while testing
    assert call_tool('test', config, checkpoint(trained), *arguments, *options(photos)) == 0
    (metrics,) = tmp_path.glob('*/*.json')
    accuracy = json.loads(metrics.read_text())['accuracy/top1']
    (log,) = trained.glob('*/*.log')
    assert f'accuracy/top1: {accuracy:.4f}' in log.read_text()  # as when it was trained
    found = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert len(found) == 3  # a fifth of five images a class
    right = [int(each['pred_label']) == int(each['gt_label']) for each in found]
    assert accuracy == pytest.approx(100 * sum(right) / 3)
    pictures = sorted(str(p.relative_to(tmp_path / 'x')) for p in (tmp_path / 'x').rglob('*.png'))
    assert [Path(picture).parts[0] for picture in pictures] == list(CLASSES)


def test_the_demo_tells_the_most_likely_classes_and_draws_them(trained, photos, tmp_path):
    image = photos / 'dog' / '0.png'
    arguments = (image, photos / 'cat', '--out-dir', tmp_path, '--device', 'cpu')
    assert call_tool('image_demo', CONFIG, checkpoint(trained), *arguments, *options(photos)) == 0
    found = json.loads((tmp_path / 'predictions.json').read_text())
    assert len(found) == 6
    for best in found.values():
        assert {each['class'] for each in best} == set(CLASSES)  # there are no more than three
        scores = [each['score'] for each in best]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-3)
    drawn = cv2.imread(str(tmp_path / 'dog' / '0.png.png'))
    assert (drawn != cv2.imread(str(image))).any()


@pytest.mark.parametrize('option', [['--masks'], ['--coco-json', 'x.json'], ['--tile', '64']])
def test_the_demo_refuses_what_is_of_objects(option, trained, photos, capsys):
    arguments = (CONFIG, checkpoint(trained), photos / 'dog', *option)
    assert call_tool('image_demo', *arguments) == 2
    assert f'{option[0]}: a classifier tells the classes' in capsys.readouterr().err


def test_what_is_of_detectors_and_segmentors_says_so(trained, photos, tmp_path, capsys):
    assert call_tool('profile_inference', CONFIG) == 2
    assert 'builds neither a detector nor a segmentor' in capsys.readouterr().err
    picture = photos / 'cat' / '0.png'
    arguments = (CONFIG, checkpoint(trained), picture, tmp_path / 'map.png', '--stage', 3)
    assert call_tool('attention_map', *arguments, '--place', 5, 5) == 2
    assert 'is of a classifier' in capsys.readouterr().err


def test_costs_are_counted_at_224(capsys):
    assert call_tool('get_flops', 'cls_configs/rmt_t_300e_in1k.py', '--json') == 0
    found = json.loads(capsys.readouterr().out)
    assert found['shape'] == [224, 224]
    # by hand: 49 places through the projection, one vector through the classifier
    width = VARIANTS['tiny'].channels[-1]
    assert found['parts']['neck']['flops_paper'] == 49 * width * 1024
    assert found['parts']['heads']['flops_paper'] == 1024 * 1000
    assert found['flops_total'] > found['flops_paper']


# --- mistakes in the data ------------------------------------------------------------------------


def empty_a_class(root: Path) -> None:
    for path in (root / 'dog').iterdir():
        path.unlink()


def leave_one_class(root: Path) -> None:
    shutil.rmtree(root / 'dog')
    shutil.rmtree(root / 'fox')


def spoil_an_image(root: Path) -> None:
    (root / 'fox' / '2.png').write_bytes(b'no image')


def add_a_class(root: Path) -> None:
    shutil.copytree(root / 'fox', root / 'owl')


def split_with_other_classes(root: Path) -> None:
    for split in ('train', 'val'):
        for name in CLASSES:
            shutil.copytree(root / name, root / split / name)
    (root / 'val' / 'dog').rename(root / 'val' / 'wolf')


def leave_no_folders(root: Path) -> None:
    for name in CLASSES:
        shutil.rmtree(root / name)


@pytest.mark.parametrize(
    ('spoil', 'said'),
    [
        (empty_a_class, '{root}/dog: no image in this folder of a class; fill it, or remove it'),
        (leave_one_class, "one class only ('cat'); a classifier needs two or more"),
        (spoil_an_image, '{root}/fox/2.png: no image that can be decoded'),
        (
            add_a_class,
            'model.head.num_classes=3, but train_dataloader.dataset has 4 classes '
            "('cat', 'dog', 'fox' and 1 more); they must agree: num_classes=4",
        ),
        (
            split_with_other_classes,
            "val_dataloader.dataset: its classes are 'cat', 'fox', 'wolf', those of the training "
            "'cat', 'dog', 'fox'",
        ),
        (leave_no_folders, 'Found 0 files in subfolders'),
        (shutil.rmtree, '{root}: no such file or directory'),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_a_mistake_ends_in_one_line(
    spoil: Callable[[Path], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = write_folders(tmp_path / 'photos', **dict.fromkeys(CLASSES, 5))
    spoil(root)
    work_dir = tmp_path / 'run'
    assert call_tool('train', CONFIG, '--work-dir', work_dir, *options(root)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: ')
    assert said.format(root=root) in error
    assert not work_dir.exists()


def test_more_best_classes_than_there_are_is_refused(photos, tmp_path, capsys):
    extra = ('val_evaluator.topk=5', 'test_evaluator.topk=5')
    assert call_tool('train', CONFIG, '--work-dir', tmp_path, *options(photos, *extra)) == 2
    assert 'val_evaluator.topk=5: there are 3 classes; give 3 or less' in capsys.readouterr().err


def test_what_there_is_is_said(photos, tmp_path, capsys):
    options_ = options(photos, 'model.backbone.type=Nothing')  # ends behind the checks
    assert call_tool('train', CONFIG, '--work-dir', tmp_path, *options_) == 2
    said = capsys.readouterr().out
    assert 'train_dataloader.dataset: 12 images of 3 classes: cat 4, dog 4, fox 4' in said
    assert 'val_dataloader.dataset: 3 images of 3 classes: cat 1, dog 1, fox 1' in said
