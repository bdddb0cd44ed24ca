"""An exported file finds what it says, and is drawn as a checkpoint's findings are."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from support import cli
from support.prediction.inputs import Picture, Source
from support.web.finder import from_checkpoint, from_exported
from support.web.views import LAYERS, view
from tiny_onnx import write_onnx

pytest.importorskip('onnxruntime', reason='onnxruntime is not installed (requirements-export.txt)')
PICTURE = Picture(Source('photo.png'), np.tile(np.uint8([9, 200, 9]), (80, 100, 1)))


def test_objects(tmp_path: Path) -> None:
    model = from_exported(write_onnx(tmp_path / 'a.onnx', 'detection'))
    assert (model.name, model.task) == ('tiny', 'detection')
    found = model.find(PICTURE)
    shown = view(found, model, 0.5, LAYERS)
    assert shown.rows == [['dog', 0.9, 10, 20, 50, 60]]
    assert 'rgb(0, 0, 255)' in shown.legend
    mask = coco_mask.decode(found.sample.pred_instances.masks[0])
    assert mask.shape == (80, 100)
    assert mask[25, 30]
    assert not mask[55, 30]
    assert len(view(found, model, 0.4, LAYERS).rows) == 2


def test_labels(tmp_path: Path) -> None:
    model = from_exported(write_onnx(tmp_path / 'a.onnx', 'segmentation'))
    assert model.task == 'segmentation'
    assert view(model.find(PICTURE), model, 0.5, LAYERS).rows == [['dog', '100.0%']]


def test_a_backbone_alone_is_refused(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / 'a.onnx', 'features')
    with pytest.raises(cli.UserError, match='backbone alone'):
        from_exported(path)


def test_a_config_of_another_kind_is_refused() -> None:
    cfg = SimpleNamespace(default_scope='mmpose', filename='pose.py')
    with pytest.raises(cli.UserError, match='default_scope is mmpose; the page is for those of'):
        from_checkpoint(cfg, 'pose.pth', 'cpu')
