"""Own data for segmentation: from images and label maps to a segmentor that trains."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import copies
import cv2
import numpy as np
import pytest
from conftest import call_tool
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image
from support.cli import UserError
from support.config import read_config
from support.own_data import maps, picture, reading

from backbone.rmt import VARIANTS


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(picture, 'draw', lambda *_: None)
    for name, variant in VARIANTS.items():
        monkeypatch.setitem(VARIANTS, name, replace(variant, depths=(1, 1, 2, 1)))


def config(data: Path, *options: object) -> Config:
    out = data.parent / 'out.py'
    assert call_tool('new_config', data, out, *options) == 0
    return read_config(str(out), {})


@pytest.mark.parametrize('head', ['fpn', 'upernet'])
def test_a_segmentor_trains_on_the_labels_of_a_palette(head: str, tmp_path: Path) -> None:
    data = copies.write_maps(tmp_path / 'data')
    cfg = config(data, '--head', head, '--size', 64)
    assert not (data / 'rmt').exists()  # the split is there as folders
    init_default_scope('mmseg')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) == len(copies.SIZES['train'])
    assert len(DATASETS.build(cfg.val_dataloader.dataset)) == len(copies.SIZES['val'])
    batch = pseudo_collate([dataset[i] for i in range(2)])
    labels = {int(v) for s in batch['data_samples'] for v in s.gt_sem_seg.data.unique()}
    assert labels - {255} == {0, 1, 2}
    model = MODELS.build(cfg.model)
    assert model.decode_head.num_classes == 3
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_without_a_split_lists_are_written(tmp_path: Path) -> None:
    data = copies.write_maps(tmp_path / 'data', split=False)
    (data / 'classes.txt').write_text('left\nmiddle\nright\n')
    cfg = config(data)
    assert cfg.metainfo.classes == ('left', 'middle', 'right')
    names = {s: (data / f'rmt/{s}.txt').read_text().splitlines() for s in ('train', 'val')}
    assert sorted(sum(names.values(), [])) == sorted(p.stem for p in (data / 'images').iterdir())  # noqa: RUF017
    for split, listed in names.items():
        infos = DATASETS.build({**cfg[f'{split}_dataloader'].dataset, 'pipeline': []})
        assert [Path(infos[i]['img_path']).stem for i in range(len(infos))] == listed


def test_images_without_a_map_are_left_out_and_told(tmp_path: Path) -> None:
    data = copies.write_maps(tmp_path / 'data')
    (data / 'masks/train/train 2.png').unlink()
    found = reading.read(str(data))
    assert found.splits['train'].size == 3
    assert any(note.startswith('1 images in') for note in found.notes)
    assert 'train 2' not in config(data).train_dataloader.dataset.ann_file
    assert (data / 'rmt/train.txt').read_text().split('\n') == ['train 1', 'train 3', 'train 4', '']


def test_maps_may_have_another_ending(tmp_path: Path) -> None:
    data = copies.write_maps(tmp_path / 'data')
    for path in (data / 'masks').rglob('*.png'):
        path.rename(path.with_name(f'{path.stem}_mask.png'))
    assert config(data).train_dataloader.dataset.seg_map_suffix == '_mask.png'


def write_map(path: Path, labels: np.ndarray) -> None:
    Image.fromarray(labels).save(path)


@pytest.mark.parametrize(
    ('spoil', 'expected'),
    [
        (lambda p: write_map(p, np.zeros((128, 96, 3), np.uint8)), 'an image of 3 channels'),
        (lambda p: write_map(p, np.full((128, 96), 300, np.int32)), 'has the label 300'),
        (lambda p: p.write_bytes(b'no image'), 'no label map that can be decoded'),
    ],
)
def test_a_map_that_is_none_is_named(
    spoil: Callable[[Path], object], expected: str, tmp_path: Path
) -> None:
    data = copies.write_maps(tmp_path / 'data')
    spoil(data / 'masks/train/train 2.png')
    with pytest.raises(UserError, match=rf'train 2\.png: {expected}'):
        reading.read(str(data))


def test_what_can_not_be_trained_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = copies.write_maps(tmp_path / 'data')
    with pytest.raises(UserError, match=r'--classes: names 2 classes, but .* the label 2'):
        reading.read(str(data), wanted=['a', 'b'])
    write_map(data / 'masks/train/train 2.png', np.zeros((9, 9), np.uint8))
    assert call_tool('new_config', data, tmp_path / 'o.py') == 2
    assert 'train 2.png: is 9 x 9 pixels, but its image' in capsys.readouterr().err
    cv2.imwrite(str(data / 'images/train/more.png'), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(UserError, match=r"images that end in '\.jpg', '\.png'"):
        reading.read(str(data))
    for path in (data / 'masks').rglob('*.png'):
        path.unlink()
    assert maps.find(data) == {}
