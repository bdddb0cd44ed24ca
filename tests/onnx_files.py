"""Files in the form of tools/export_onnx.py whose answers are known without a network."""

from pathlib import Path

import onnx
from support.exported.metadata import Metadata

DETECTOR = Metadata(
    task='detection',
    model='corners',
    classes=('cat', 'dog'),
    palette=((255, 0, 0), (0, 0, 255)),
    scale=(120, 80),
    mean=(10.0, 20.0, 30.0),
)
SEGMENTOR = Metadata(task='segmentation', model='brightest', classes=('r', 'g', 'b'))


def write_onnx(
    path: Path, body: str, metadata: dict, sides: tuple[object, object] = ('height', 'width')
) -> Path:
    """An ONNX file from text, input ``image`` (1, 3, height, width)."""
    height, width = sides
    head = f'<ir_version: 10, opset_import: ["" : 20]>\nmodel (float[1,3,{height},{width}] image) '
    model = onnx.parser.parse_model(head + body)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


CORNERS = """=> (float[1,4] boxes, float[1] scores, int64[1] labels, float[1,1,2] masks) {
    shape = Shape <start = 2> (image)
    two = Constant <value_ints = [2]> ()
    order = Constant <value_ints = [1, 0]> ()
    swapped = Gather (shape, order)
    sides = Cast <to = 1> (swapped)
    axes = Constant <value_ints = [0]> ()
    zeros = Sub (sides, sides)
    corners = Concat <axis = 0> (zeros, sides)
    boxes = Unsqueeze (corners, axes)
    blue = Constant <value_ints = [2]> ()
    channel = Gather <axis = 1> (image, blue)
    every = Constant <value_ints = [-1]> ()
    flat = Reshape (channel, every)
    scores = ReduceMean <keepdims = 1> (flat)
    labels = Constant <value_ints = [1]> ()
    masks = Constant <value = float[1,1,2] {0.9, 0.1}> ()
}"""
"""The box is the whole input, the score its blue mean, the mask its left half."""

BRIGHTEST = """=> (int64[1,height,width] labels, float[1,3,h,w] logits) {
    labels = ArgMax <axis = 1, keepdims = 0> (image)
    logits = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (image)
}"""
"""The brightest colour; the logits at half the size, as heads give them."""
