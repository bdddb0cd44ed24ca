"""Every family at a size that is exported in seconds, with random weights that find something."""

import logging

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from support.config import read_config
from torch import nn

# pytest would keep every record of PyTorch's trace of itself, thousands an export
logging.getLogger('torch.__trace').propagate = False

ARCH = dict(
    channels=(8, 8, 16, 16),
    depths=(1, 1, 1, 1),
    heads=(1, 2, 2, 2),
    decay_span=(4, 4, 6, 6),
    ffn_ratio=(2, 2, 2, 2),
    axial=(True, True, False, False),
    layer_scale=(None, None, 0.5, 0.5),
    drop_path=0.0,
)
OTHER_ARCH = dict(
    channels=(8, 8, 16, 16), depths=(1, 1, 1, 1), heads=(1, 2, 2, 2), ffn_ratio=(2,) * 4
)
"""The same of RAVLT and MAViT, which have no decay."""
WIDTH = 16
SCALE = (128, 96)
"""What pictures are resized to, the longer and the shorter side."""
CLASSES = ('cup', 'jug', 'pan')
PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]

BASES = {
    'mask_rcnn': 'det_configs/mask_rcnn_rmt_t_fpn_1x_coco.py',
    'cascade': 'det_configs/cascade_mask_rcnn_rmt_s_fpn_3x_coco.py',
    'retinanet': 'det_configs/retinanet_rmt_t_fpn_1x_coco.py',
    'fpn': 'seg_configs/fpn_rmt_t_80k_ade20k.py',
    'upernet': 'seg_configs/upernet_rmt_t_160k_ade20k.py',
}
SEGMENTORS = ('fpn', 'upernet')


def tiny_config(family: str, number: int = len(CLASSES), backbone: str = 'RMT') -> Config:
    """The family's config of full width, made narrow, for a number of classes."""
    cfg = read_config(BASES[family], {})
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = SCALE
    model = cfg.model
    channels = list(ARCH['channels'])
    indices = model.backbone.get('out_indices', (0, 1, 2, 3))
    arch = ARCH if backbone == 'RMT' else OTHER_ARCH
    model.backbone = dict(type=backbone, arch=arch, out_indices=indices)
    if 'neck' in model:
        model.neck.update(in_channels=[channels[i] for i in indices], out_channels=WIDTH)
    if family in SEGMENTORS:
        head = model.decode_head
        head.update(num_classes=number, channels=WIDTH, norm_cfg=dict(type='BN'))
        head.in_channels = [WIDTH] * 4 if family == 'fpn' else channels
        model.pop('auxiliary_head', None)
        return cfg
    if family == 'retinanet':
        model.bbox_head.update(
            num_classes=number, in_channels=WIDTH, feat_channels=WIDTH, stacked_convs=1
        )
        return cfg
    model.rpn_head.update(in_channels=WIDTH, feat_channels=WIDTH)
    model.test_cfg.rpn.update(nms_pre=200, max_per_img=40)
    model.test_cfg.rcnn.max_per_img = 12
    roi = model.roi_head
    roi.bbox_roi_extractor.out_channels = WIDTH
    for head in roi.bbox_head if isinstance(roi.bbox_head, list) else [roi.bbox_head]:
        head.update(num_classes=number, in_channels=WIDTH, fc_out_channels=WIDTH)
        if 'conv_out_channels' in head:
            head.update(conv_out_channels=WIDTH, norm_cfg=dict(type='BN'), num_shared_convs=1)
    if 'mask_head' in roi:
        roi.mask_roi_extractor.out_channels = WIDTH
        roi.mask_head.update(
            num_classes=number, in_channels=WIDTH, conv_out_channels=WIDTH, num_convs=1
        )
    return cfg


def tiny_model(cfg: Config) -> nn.Module:
    """With random weights that tell places apart, so that scores are spread and boxes move."""
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    for name, weight in model.named_parameters():
        if name.endswith(('cls.weight', 'reg.weight', 'conv_seg.weight', 'logits.weight')):
            # a score of 1 many times would leave their order to chance
            nn.init.normal_(weight, std=0.05 if 'retina' in name else 0.5)
        elif name.endswith('retina_cls.bias'):
            nn.init.zeros_(weight)
    model.dataset_meta = dict(classes=CLASSES, palette=PALETTE)
    return model
