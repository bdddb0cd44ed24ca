"""Exported files of a few operators, as tools/export_onnx.py writes them."""

from pathlib import Path

import pytest

GRAPHS = {
    # whatever the picture, two boxes whose masks are their upper halves
    'detection': """=> (float[2,4] boxes, float[2] scores, int64[2] labels, float[2,2,1] masks) {
        boxes = Constant <value = float[2,4] {10, 20, 50, 60, 5, 5, 9, 9}> ()
        scores = Constant <value_floats = [0.9, 0.4]> ()
        labels = Constant <value_ints = [1, 0]> ()
        masks = Constant <value = float[2,2,1] {1, 0, 1, 0}> ()
    }""",
    # each pixel is its brightest channel
    'segmentation': """=> (int64[1,height,width] labels, float[1,3,height,width] logits) {
        labels = ArgMax <axis = 1, keepdims = 0> (image)
        logits = Identity (image)
    }""",
    'features': '=> (float[1,3,height,width] stage1) { stage1 = Identity (image) }',
}
CLASSES, PALETTE = ('cat', 'dog', 'cow'), ((255, 0, 0), (0, 0, 255), (0, 255, 0))


def write_onnx(path: Path, task: str) -> str:
    """A file of that task, named ``tiny``; skips where onnx is not installed."""
    onnx = pytest.importorskip('onnx', reason='onnx is not installed (requirements-export.txt)')
    from support.exported.metadata import Metadata

    head = '<ir_version: 10, opset_import: ["" : 20]>\nmodel (float[1,3,height,width] image) '
    model = onnx.parser.parse_model(head + GRAPHS[task])
    metadata = Metadata(task=task, model='tiny', classes=CLASSES, palette=PALETTE)
    onnx.helper.set_model_props(model, metadata.to_text())
    onnx.save(model, path)
    return str(path)
