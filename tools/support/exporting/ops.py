"""RoIAlign, NMS and TopK for torch.export, and the operators of ONNX that they become.

The first two are none of PyTorch's own. Each has a form that computes what the operator of ONNX
computes, so that a graph can be run before it is written. How many boxes leave TopK and NMS is a
number without a formula: formulas of minima make torch.export take minutes.
"""

from collections.abc import Callable

import torch
from support.exported.runtimes import need
from torch import Tensor


@torch.library.custom_op('rmt::nms', mutates_args=())
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    """Places of the boxes that are kept, the best first: boxes xyxy (N, 4), scores (N,) -> (K,)."""
    from mmcv.ops import nms as mmcv_nms

    if not len(boxes):
        return torch.zeros(0, dtype=torch.int64)
    _, kept = mmcv_nms(boxes, scores, iou_threshold)
    return kept[:most].clone()


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size(max=most)
    return boxes.new_empty(kept, dtype=torch.int64)


@torch.library.custom_op('rmt::top', mutates_args=())
def top(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The ``most`` highest of scores (N,), or all, and their places; the highest first."""
    return scores.topk(min(most, len(scores)))


@top.register_fake
def _(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    kept = torch.library.get_ctx().new_dynamic_size(max=most)
    return scores.new_empty(kept), scores.new_empty(kept, dtype=torch.int64)


@torch.library.custom_op('rmt::roi_align', mutates_args=())
def roi_align(
    x: Tensor, boxes: Tensor, height: int, width: int, scale: float, samples: int
) -> Tensor:
    """Features of boxes: x (1, C, H, W), boxes xyxy (N, 4) in pixels -> (N, C, height, width)."""
    from mmcv.ops import roi_align as mmcv_roi_align

    rois = torch.nn.functional.pad(boxes, (1, 0))  # the image's number is 0
    return mmcv_roi_align(x, rois, (height, width), scale, samples, 'avg', True)


@roi_align.register_fake
def _(x: Tensor, boxes: Tensor, height: int, width: int, scale: float, samples: int) -> Tensor:
    return x.new_empty(boxes.shape[0], x.shape[1], height, width)


def translations() -> dict[object, Callable]:
    """For ``torch.onnx.export(custom_translation_table=...)``."""
    need('onnxscript')
    from onnxscript import opset18 as op

    def onnx_nms(boxes, scores, iou_threshold: float, most: int):
        kept = op.NonMaxSuppression(
            op.Unsqueeze(boxes, op.Constant(value_ints=[0])),
            op.Unsqueeze(scores, op.Constant(value_ints=[0, 1])),
            op.Constant(value_ints=[most]),
            op.Constant(value_floats=[iou_threshold]),
        )  # (K, 3): image, class, box
        return op.Gather(kept, op.Constant(value_int=2), axis=1)

    def onnx_top(scores, most: int):
        limit = op.Constant(value_ints=[most])
        return op.TopK(scores, op.Min(op.Shape(scores), limit), axis=0)

    def onnx_roi_align(x, boxes, height: int, width: int, scale: float, samples: int):
        rows = op.Shape(boxes, start=0, end=1)
        images = op.ConstantOfShape(rows, value=_zero())
        return op.RoiAlign(
            x,
            boxes,
            images,
            coordinate_transformation_mode='half_pixel',
            mode='avg',
            output_height=height,
            output_width=width,
            sampling_ratio=samples,
            spatial_scale=scale,
        )

    return {
        torch.ops.rmt.nms.default: onnx_nms,
        torch.ops.rmt.top.default: onnx_top,
        torch.ops.rmt.roi_align.default: onnx_roi_align,
    }


def _zero():
    import onnx

    return onnx.helper.make_tensor('zero', onnx.TensorProto.INT64, [1], [0])
