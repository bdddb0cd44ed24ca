"""From a folder of somebody's images to a config that trains."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import DET_CONFIG, ROOT, call_tool, run_command
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from support.config import build_runner, read_config
from support.own_data import picture, recipe
from support.own_data.placing import FOLDER
from tiny_data import SIZES, write_coco

from backbone.engine import RMTRunner
from backbone.rmt import VARIANTS

Make = Callable[..., Config]
RUFF = (sys.executable, '-m', 'ruff', 'format', '--check', '--config', ROOT / 'pyproject.toml')


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, 'draw', lambda *_: None)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight photos and an annotation file, called as somebody calls them."""
    write_coco(tmp_path / 'coco', SIZES * 2)
    root = tmp_path / 'my photos'
    root.mkdir()
    (tmp_path / 'coco/train2017').rename(root / 'pictures, all')
    (tmp_path / 'coco/annotations/instances_train2017.json').rename(root / 'labels v2.json')
    return root


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Run the command; the config it writes, as a training reads it."""

    def run(data: Path, *options: object) -> Config:
        out = tmp_path / 'out.py'
        out.unlink(missing_ok=True)
        assert call_tool('new_config', data, out, *options) == 0
        return read_config(str(out), {})

    return run


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run the command; the one line that it ends with, after which nothing new is there."""

    def run(data: Path, *options: object, out: str = 'out.py') -> str:
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
        assert call_tool('new_config', data, tmp_path / out, *options) == 2
        after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
        assert after == before
        error = capsys.readouterr().err.strip().splitlines()
        assert sum(line.startswith('error: ') for line in error) == 1
        return error[-1].removeprefix('error: ')

    return run


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def boxes_alone(content: dict) -> None:
    for row in content['annotations']:
        del row['segmentation']


@pytest.fixture
def _quick_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a description of the machine, which takes a second."""
    monkeypatch.setattr(RMTRunner, '_log_env', lambda *_: None)


@pytest.fixture
def _shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, variant in VARIANTS.items():
        monkeypatch.setitem(VARIANTS, name, replace(variant, depths=(1, 1, 2, 1)))


# --- what is written -----------------------------------------------------------------------------


def test_photos_without_a_split_are_split_beside_the_data(make: Make, photos: Path) -> None:
    source = (photos / 'labels v2.json').read_text()
    cfg = make(photos)
    assert (photos / 'labels v2.json').read_text() == source
    read = {
        split: json.loads((photos / FOLDER / f'{split}.json').read_text())
        for split in ('train', 'val')
    }
    names = {split: {i['file_name'] for i in content['images']} for split, content in read.items()}
    assert not names['train'] & names['val']
    assert names['train'] | names['val'] == {p.name for p in (photos / 'pictures, all').iterdir()}
    for content in read.values():
        assert {row['category_id'] for row in content['annotations']} == {1, 3}
    assert cfg.metainfo.classes == ('person', 'car')  # of COCO's 80 in the file
    for split in ('train', 'val'):
        init_default_scope('mmdet')
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        assert len(dataset) == len(names[split])
        assert Path(dataset[0]['data_samples'].img_path).name in names[split]
    assert cfg.val_evaluator.ann_file == str(photos / FOLDER / 'val.json')
    assert make(photos).to_dict() == cfg.to_dict()  # and no complaint of the files of the first run


def test_a_split_that_is_there_is_used_as_it_is(make: Make, tiny_coco: Path) -> None:
    cfg = make(tiny_coco)
    assert not (tiny_coco / FOLDER).exists()
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/instances_train2017.json'
    assert cfg.val_dataloader.dataset.data_prefix.img == 'val2017/'


def test_val_may_be_named(make: Make, photos: Path) -> None:
    shutil.copy(photos / 'labels v2.json', photos / 'more.json')
    cfg = make(photos / 'labels v2.json', '--val', photos / 'more.json')
    assert cfg.val_dataloader.dataset.ann_file == 'more.json'
    assert cfg.train_dataloader.dataset.ann_file == 'labels v2.json'


def test_data_may_move(make: Make, photos: Path, tmp_path: Path) -> None:
    make(photos)
    cfg = read_config(str(tmp_path / 'out.py'), {'data_root': '/moved'})
    assert cfg.val_evaluator.ann_file == f'/moved/{FOLDER}/val.json'
    assert cfg.val_dataloader.dataset.data_root == '/moved/'


@pytest.mark.parametrize(
    ('masks', 'options', 'kind'),
    [
        (True, (), 'MaskRCNN'),
        (False, (), 'RetinaNet'),
        (False, ('--head', 'faster_rcnn', '--arch', 'small'), 'FasterRCNN'),
    ],
)
@pytest.mark.usefixtures('_shallow')
def test_the_head_follows_the_data_and_trains(
    masks: bool, options: tuple[str, ...], kind: str, make: Make, photos: Path
) -> None:
    if not masks:
        edit(photos / 'labels v2.json', boxes_alone)
    cfg = make(photos, *options, '--size', 64, '--classes', 'car')
    assert cfg.model.type == kind
    assert cfg.model.backbone.arch == (options[-1] if '--arch' in options else 'tiny')
    assert cfg.val_evaluator.metric == (['bbox', 'segm'] if kind == 'MaskRCNN' else 'bbox')
    model = MODELS.build(cfg.model)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    batch = pseudo_collate([dataset[i] for i in range(2)])
    assert all(set(s.gt_instances.labels.tolist()) == {0} for s in batch['data_samples'])
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


@pytest.mark.parametrize('gpu', [False, True])
def test_every_head_and_machine_makes_a_config(
    gpu: bool, make: Make, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written as this project's own are."""
    machine = recipe.Machine(gpu, 4, 24 * 2**30)
    monkeypatch.setattr(recipe.Machine, 'here', classmethod(lambda cls: machine))
    for head in (*recipe.MASK_HEADS, *recipe.BOX_HEADS):
        cfg = make(photos, '--head', head)
        with torch.device('meta'):
            MODELS.build(cfg.model)
        assert run_command(*RUFF, tmp_path / 'out.py', cwd=tmp_path).returncode == 0
        assert cfg.model.neck.out_channels == (256 if gpu else cfg.model.neck.out_channels)
        assert cfg.train_dataloader.num_workers == (3 if gpu else 0)


@pytest.mark.usefixtures('_shallow', '_quick_runner')
def test_train_keeps_the_best_and_says_how_it_goes(
    make: Make, photos: Path, tmp_path: Path, run_tool: Callable[..., int]
) -> None:
    edit(photos / 'labels v2.json', boxes_alone)
    make(photos, '--size', 64)
    work = tmp_path / 'work'
    options = ['train_cfg.max_iters=2', 'train_cfg.val_interval=1', 'model.test_cfg.score_thr=0']
    assert (
        run_tool('train', tmp_path / 'out.py', '--work-dir', work, '--cfg-options', *options) == 0
    )
    assert len(list(work.glob('best_coco_bbox_mAP_iter_*.pth'))) == 1
    (log,) = work.glob('*/*.log')
    assert 'coco/bbox_mAP:' in log.read_text()


@pytest.mark.usefixtures('_quick_runner')
def test_weights_of_another_detector_begin_a_training(
    make: Make, photos: Path, tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    """Mask R-CNN with the paper's heads: the config's are as wide, its classes are fewer."""
    cfg = make(photos, '--start', checkpoints[DET_CONFIG], '--size', 64)
    assert cfg.model.neck.out_channels == 256
    assert cfg.load_from == str(checkpoints[DET_CONFIG])
    assert cfg.custom_hooks[0] == dict(type='StrictLoadHook', own_classes=True)
    cfg.work_dir = str(tmp_path / 'work')
    runner = build_runner(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.load_or_resume()
    saved = torch.load(checkpoints[DET_CONFIG], weights_only=True)['state_dict']
    for name, tensor in runner.model.state_dict().items():
        same = tensor.shape == saved[name].shape and torch.equal(tensor, saved[name])
        assert same != bool(re.search('fc_cls|fc_reg|conv_logits', name)), name


# --- mistakes ------------------------------------------------------------------------------------


def test_what_can_not_be_written_is_said_first(refused: Callable[..., str], photos: Path) -> None:
    (photos.parent / 'there.py').touch()
    assert 'there.py: exists' in refused(photos, out='there.py')
    assert 'must end in .py' in refused(photos, out='there')
    (photos.parent / 'mine.png').touch()
    assert 'mine.png: exists' in refused(photos, out='mine.py')
    assert '--size 3: must be' in refused(photos, '--size', 3)
    assert '--minutes 0.0: must be' in refused(photos, '--minutes', 0)
    assert 'absent: no such folder' in refused(photos, out='absent/out.py')
    (photos / FOLDER).mkdir()
    (photos / FOLDER / 'train.json').write_text('{"mine": 1}')
    assert f'{FOLDER}: is there and not written by tools/new_config.py' in refused(photos)


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (lambda c: c['annotations'][5].update(bbox=[1, 2]), 'annotations[5] (id 6, image 0000'),
        (
            lambda c: c['annotations'][3].update(image_id=77),
            'annotations[3] (id 4) has image_id=77',
        ),
        (lambda c: c['images'][2].update(file_name='a.jpg'), 'images[2]: '),
        (lambda c: c['images'][2].update(width=5), 'is read as 96 x 96 pixels and is 5 x 96'),
        (lambda c: c.update(annotations=[]), 'json: no object to train on: of 0, none is there'),
        (lambda c: [a.update(iscrowd=1) for a in c['annotations']], 'train on: of 16, 16 crowds'),
        (lambda c: c['categories'][1].update(name='person'), 'the same name'),
        (lambda c: c.update(images=c['images'][:1], annotations=c['annotations'][:2]), 'one image'),
    ],
)
def test_a_fault_is_named_with_its_place(
    change: Callable[[dict], object],
    expected: str,
    refused: Callable[..., str],
    photos: Path,
) -> None:
    edit(photos / 'labels v2.json', change)
    assert expected in refused(photos)


def test_what_data_may_be_is_said(refused: Callable[..., str], photos: Path) -> None:
    assert 'no such file or folder' in refused(photos / 'absent')
    assert 'nothing known in it' in refused(photos / 'pictures, all')
    assert 'no such folder' in refused(photos, '--images', photos / 'absent')
    assert 'goes with one JSON file as DATA' in refused(photos, '--val', photos / 'labels v2.json')
    assert "has no 'unicorn'; it has 'person'" in refused(photos, '--classes', 'car', 'unicorn')
    shutil.copy(photos / 'labels v2.json', photos / 'more.json')
    assert "has the annotation files 'labels v2.json', 'more.json'" in refused(photos)


def test_a_head_that_the_data_does_not_have_is_refused(
    refused: Callable[..., str], photos: Path
) -> None:
    edit(photos / 'labels v2.json', boxes_alone)
    assert 'the data has boxes alone: retinanet, faster_rcnn' in refused(
        photos, '--head', 'mask_rcnn'
    )
    assert '--head fpn: the data has boxes alone' in refused(photos, '--head', 'fpn')
