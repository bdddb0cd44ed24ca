"""From a model of mmdet's or mmseg's to what can be exported, or why it cannot, in one line."""

import copy
from dataclasses import dataclass

import torch
from mmcv.cnn import fuse_conv_bn
from support.cli import UserError
from support.exporting.attention import for_export
from support.exporting.detectors import OneStage, TwoStage
from support.exporting.parts import AdaptivePool, Enlarge
from support.exporting.segmentors import Features, Segmentor
from torch import nn

from backbone import RAVLT, RMT, MAViT

PARTS = ('model', 'backbone')


@dataclass(frozen=True)
class Exportable:
    """What torch.export takes, and what the graph does before it.

    Attributes:
        module: with ``inputs`` and ``outputs``, their names.
        task: of :data:`support.exported.metadata.TASKS`.
        mean, std: (3,) of RGB from 0 to 255.
        divisor: the image is padded to multiples of it.
    """

    module: nn.Module
    task: str
    mean: torch.Tensor
    std: torch.Tensor
    divisor: int


class NotExportable(UserError):
    """The model holds a part that has no form here; the message names it."""


def exportable(model: nn.Module, part: str = 'model') -> Exportable:
    """A copy of the model to export.

    Args:
        part: ``'model'``, or the ``'backbone'`` alone.

    Raises:
        NotExportable: which part it is, what is there and what could be.
    """
    must_be(model.backbone, 'model.backbone', RMT, RAVLT, MAViT)
    if part == 'model':
        check_head(model)
    preparation = model.data_preprocessor
    segmentation = hasattr(model, 'decode_head')
    divisor = 1 if segmentation else preparation.pad_size_divisor
    # norms as a part of the convolutions; one of boxes' features stops torch.export, which cannot
    # know that there are any
    model = fuse_conv_bn(copy.deepcopy(model).eval()).requires_grad_(False)
    for_export(model.backbone)
    if part == 'backbone':
        module, task = Features(model.backbone), 'features'
    elif segmentation:
        module, task = segmentor(model), 'segmentation'
    else:
        module, task = detector(model), 'detection'
    check_preparation(preparation, segmentation)
    statistics = preparation.mean.flatten(), preparation.std.flatten()
    return Exportable(module.eval(), task, *statistics, divisor)


def check_head(model: nn.Module) -> None:
    from mmdet.models.detectors import RetinaNet, TwoStageDetector
    from mmseg.models.decode_heads import FCNHead, FPNHead, UPerHead

    if hasattr(model, 'decode_head'):
        known = {FPNHead: 'Semantic FPN', UPerHead: 'UperNet', FCNHead: 'FCN'}
        where, found = 'model.decode_head', type(model.decode_head)
    else:
        known = {RetinaNet: 'RetinaNet', TwoStageDetector: 'Faster, Mask and Cascade R-CNN'}
        where, found = 'model', type(model)
    if not issubclass(found, tuple(known)):
        raise NotExportable(
            f'{where} is {found.__name__}: this head is not supported by export, which knows '
            f'{", ".join(known.values())}; --part backbone exports what is below any head'
        )


def check_preparation(preparation: nn.Module, segmentation: bool) -> None:
    what = 'model.data_preprocessor'
    if not getattr(preparation, '_enable_normalize', False) or preparation.mean.numel() != 3:
        raise NotExportable(f'{what}: it must subtract a mean of three colours')
    if not preparation._channel_conversion:
        raise NotExportable(f'{what}: bgr_to_rgb must be True')
    if segmentation and preparation.test_cfg:
        raise NotExportable(f'{what}.test_cfg: an image is not padded in the file')
    if not segmentation and preparation.pad_value != 0:
        raise NotExportable(f'{what}.pad_value: {preparation.pad_value}; it must be 0')


def detector(model: nn.Module) -> nn.Module:
    from mmdet.models.dense_heads import RetinaHead, RPNHead
    from mmdet.models.detectors import RetinaNet
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead

    if isinstance(model, RetinaNet):
        dense(model.bbox_head, 'model.bbox_head', RetinaHead, model.bbox_head.test_cfg)
        return OneStage(model)
    dense(model.rpn_head, 'model.rpn_head', RPNHead, model.test_cfg['rpn'])
    roi, where = model.roi_head, 'model.roi_head'
    must_be(roi, where, StandardRoIHead, CascadeRoIHead)
    check_nms(model.test_cfg['rcnn'], 'model.test_cfg.rcnn')
    check_roi_parts(roi, where)
    return TwoStage(model)


def dense(head: nn.Module, where: str, kind: type, cfg: dict) -> None:
    from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder

    must_be(head, where, kind)
    must_be(head.prior_generator, f'{where}.anchor_generator', AnchorGenerator)
    must_be(head.bbox_coder, f'{where}.bbox_coder', DeltaXYWHBBoxCoder)
    if not head.use_sigmoid_cls:
        raise NotExportable(f'{where}: its classes must be sigmoids')
    if cfg.get('nms_pre', -1) < 1:
        raise NotExportable(f'{where}: test_cfg.nms_pre must be given')
    check_nms(cfg, f'{where}: test_cfg')


def check_nms(cfg: dict, where: str) -> None:
    nms = cfg['nms']
    extra = set(nms) - {'type', 'iou_threshold'}
    if nms.get('type', 'nms') != 'nms' or extra or cfg.get('max_per_img', -1) < 1:
        raise NotExportable(
            f'{where}: nms is {dict(nms)}; it must be of type nms with an iou_threshold, and '
            'max_per_img given'
        )


def check_roi_parts(roi: nn.Module, where: str) -> None:
    from mmcv.ops import RoIAlign
    from mmdet.models.roi_heads import ConvFCBBoxHead, FCNMaskHead, SingleRoIExtractor
    from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead, Shared4Conv1FCBBoxHead
    from mmdet.models.task_modules import DeltaXYWHBBoxCoder

    kinds = {
        'bbox_head': (ConvFCBBoxHead, Shared2FCBBoxHead, Shared4Conv1FCBBoxHead),
        'bbox_roi_extractor': (SingleRoIExtractor,),
    }
    if roi.with_mask:
        kinds |= {'mask_head': (FCNMaskHead,), 'mask_roi_extractor': (SingleRoIExtractor,)}
    for name, known in kinds.items():
        found = getattr(roi, name)
        for module in found if isinstance(found, nn.ModuleList) else [found]:
            must_be(module, f'{where}.{name}', *known)
            for layer in getattr(module, 'roi_layers', ()):
                must_be(layer, f'{where}.{name}.roi_layer', RoIAlign)
                if not layer.aligned or layer.pool_mode != 'avg':
                    raise NotExportable(f'{where}.{name}.roi_layer: aligned averages alone')
            if name == 'bbox_head':
                must_be(module.bbox_coder, f'{where}.{name}.bbox_coder', DeltaXYWHBBoxCoder)
                if module.custom_activation or not module.with_reg:
                    raise NotExportable(f'{where}.{name}: softmax classes and boxes alone')


def segmentor(model: nn.Module) -> nn.Module:
    from mmseg.models import EncoderDecoder
    from mmseg.models.decode_heads import FCNHead, FPNHead, UPerHead
    from mmseg.models.utils import Upsample

    must_be(model, 'model', EncoderDecoder)
    must_be(model.decode_head, 'model.decode_head', FPNHead, UPerHead, FCNHead)
    if model.test_cfg.get('mode', 'whole') != 'whole':
        raise NotExportable(f'model.test_cfg.mode is {model.test_cfg.mode}; it must be whole')
    if model.decode_head.out_channels < 2:
        raise NotExportable('model.decode_head: a single output, decided by a threshold')
    for module in list(model.decode_head.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(module, name, AdaptivePool(child.output_size))
            elif isinstance(child, Upsample):
                setattr(module, name, Enlarge(child))
    return Segmentor(model)


def must_be(thing: object, where: str, *known: type) -> None:
    """Raise where it is none of these classes itself: what inherits may compute something else."""
    if type(thing) not in known:
        names = ', '.join(kind.__name__ for kind in known)
        raise NotExportable(f'{where} is {type(thing).__name__}; exported are: {names}')
