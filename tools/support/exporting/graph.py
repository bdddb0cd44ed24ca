"""The graph of ONNX: by torch.onnx.export, behind a few operators that prepare the image."""

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout

import torch
from support.exported.runtimes import need
from support.exporting import attention, ops, rotary
from support.exporting.build import Exportable
from torch import nn

OPSET = 18
LEAST, MOST = 32, 8192
"""Pixels of a side of the padded image, in a graph of any size."""
EXAMPLE = (128, 160)
"""Height and width that are traced."""

PREPARE = """
<ir_version: 10, opset_import: ["" : {opset}]>
prepare (float[1,3,{height},{width}] image) => (float[1,3,{rows},{columns}] padded, float[4] limits)
{{
    prepare_mean = Constant <value = float[1,3,1,1] {{{mean}}}> ()
    prepare_std = Constant <value = float[1,3,1,1] {{{std}}}> ()
    prepare_centred = Sub (image, prepare_mean)
    prepare_normal = Div (prepare_centred, prepare_std)
    prepare_size = Shape <start = 2> (image)
    prepare_divisor = Constant <value_ints = [{divisor}]> ()
    prepare_almost = Constant <value_ints = [{almost}]> ()
    prepare_up = Add (prepare_size, prepare_almost)
    prepare_number = Div (prepare_up, prepare_divisor)
    prepare_whole = Mul (prepare_number, prepare_divisor)
    prepare_more = Sub (prepare_whole, prepare_size)
    prepare_none = Constant <value_ints = [0, 0, 0, 0, 0, 0]> ()
    prepare_pads = Concat <axis = 0> (prepare_none, prepare_more)
    padded = Pad (prepare_normal, prepare_pads)
    prepare_order = Constant <value_ints = [1, 0, 1, 0]> ()
    prepare_sides = Gather (prepare_size, prepare_order)
    limits = Cast <to = 1> (prepare_sides)
}}
"""


def export(what: Exportable, shape: tuple[int, int] | None):
    """The model as an ``onnx.ModelProto`` from ``image`` (1, 3, H, W) to its outputs.

    Args:
        shape: height and width where the file is for that size alone; None is any size.
    """
    onnx = need('onnx')
    translations = {
        **ops.translations(),
        **attention.translation(),
        **rotary.translation(),
    }
    d = what.divisor
    height, width = (-(-side // d) * d for side in shape or EXAMPLE)
    image = torch.zeros(1, 3, height, width)
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    inputs = dict(padded=image, limits=limits)
    inputs = {name: inputs[name] for name in what.module.inputs}
    program = quietly(what.module, inputs, None if shape else sides(d), translations)
    network = program.model_proto
    prepare = onnx.parser.parse_model(
        PREPARE.format(
            opset=OPSET,
            height=shape[0] if shape else 'height',
            width=shape[1] if shape else 'width',
            rows=height if shape else 'rows',
            columns=width if shape else 'columns',
            mean=', '.join(map(str, what.mean.tolist())),
            std=', '.join(map(str, what.std.tolist())),
            divisor=d,
            almost=d - 1,
        )
    )
    network.ir_version = prepare.ir_version
    names = [(name, name) for name in inputs]
    model = onnx.compose.merge_models(
        prepare, network, io_map=names, outputs=list(what.module.outputs)
    )
    del model.opset_import[1:]  # both name it
    clean(model)
    onnx.checker.check_model(model)
    return model


def sides(divisor: int) -> dict:
    """For torch.export: which sides of the image (1, 3, H, W) may have any length."""
    any_number = torch.export.Dim
    if divisor == 1:
        free = any_number.DYNAMIC(min=LEAST, max=MOST)
        return {2: free, 3: free}
    least, most = -(-LEAST // divisor), MOST // divisor
    least = max(least, 2)  # 1 is a case of its own to torch.export
    rows, columns = (any_number(name, min=least, max=most) for name in ('rows', 'columns'))
    return {2: divisor * rows, 3: divisor * columns}


def quietly(module: nn.Module, inputs: dict, free: dict | None, translations: dict):
    """``torch.onnx.export`` without what it says of its own steps."""
    shapes = None
    if free:
        shapes = tuple(free if name == 'padded' else None for name in inputs)
    level = logging.getLogger('torch.onnx').level
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    try:
        with (
            torch.no_grad(),
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter('ignore')
            program = torch.export.export(
                module, tuple(inputs.values()), dynamic_shapes=shapes, strict=False
            )
            return torch.onnx.export(
                program,
                tuple(inputs.values()),
                dynamo=True,
                verbose=False,
                input_names=list(inputs),
                output_names=list(module.outputs),
                opset_version=OPSET,
                custom_translation_table=translations,
            )
    finally:
        logging.getLogger('torch.onnx').setLevel(level)


def clean(model) -> None:
    """Leave out where in which source each operator came from: places of this machine."""
    for thing in (
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.initializer,
    ):
        thing.ClearField('metadata_props')
        thing.ClearField('doc_string')
    model.ClearField('metadata_props')
