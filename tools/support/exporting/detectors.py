"""mmdet's detectors as graphs: their own backbone, neck and heads, :mod:`parts` between them."""

import torch
from support.exporting import ops
from support.exporting.parts import Anchors, Decode, separate_nms
from torch import Tensor, nn


class DenseBoxes(nn.Module):
    """What an anchor head (RPN, RetinaNet) says of each level, the surest places of each alone.

    mmdet's ``BaseDenseHead`` and ``RPNHead``: boxes (N, 4), scores (N,), and the number of each
    one's class, or for an RPN of its level.
    """

    def __init__(self, head: nn.Module, cfg: dict, proposals: bool) -> None:
        super().__init__()
        self.head, self.proposals = head, proposals
        self.anchors = nn.ModuleList(
            Anchors(base, stride)
            for base, stride in zip(
                head.prior_generator.base_anchors, head.prior_generator.strides, strict=True
            )
        )
        self.decode = Decode(head.bbox_coder)
        self.nms_pre = cfg['nms_pre']
        self.score_thr = 0.0 if proposals else cfg['score_thr']
        self.smallest = cfg.get('min_bbox_size', -1)

    def forward(self, features: tuple[Tensor, ...], limits: Tensor) -> tuple[Tensor, ...]:
        found = []
        for level, (logits, deltas) in enumerate(zip(*self.head(features), strict=True)):
            found.append(self.level(level, logits[0], deltas[0]))
        scores, deltas, anchors, groups = (torch.cat(each) for each in zip(*found, strict=True))
        boxes = self.decode(anchors, deltas, limits)
        if self.smallest >= 0:
            large = (boxes[:, 2:] - boxes[:, :2] > self.smallest).all(dim=1)
            (kept,) = large.nonzero(as_tuple=True)
            boxes, scores, groups = boxes[kept], scores[kept], groups[kept]
        return boxes, scores, groups

    def level(self, level: int, logits: Tensor, deltas: Tensor) -> tuple[Tensor, ...]:
        """logits (A * classes, H, W), deltas (A * 4, H, W)."""
        anchors = self.anchors[level](logits[None])
        deltas = deltas.permute(1, 2, 0).reshape(-1, 4)
        scores = logits.permute(1, 2, 0).reshape(-1, self.head.cls_out_channels).sigmoid()
        classes = scores.shape[1]
        scores = scores.reshape(-1)  # (H * W * A * classes)
        scores, places = ops.top(scores, self.nms_pre)
        if not self.proposals:
            (kept,) = (scores > self.score_thr).nonzero(as_tuple=True)
            scores, places = scores[kept], places[kept]
        rows = places // classes
        group = torch.full_like(places, level) if self.proposals else places % classes
        return scores, deltas[rows], anchors[rows], group


class Detector(nn.Module):
    """From an image to what is in it.

    Image (1, 3, H, W), normalised and padded, and ``limits`` (W, H, W, H) without the padding ->
    boxes xyxy (N, 4), scores (N,), labels (N,), and masks (N, 28, 28) where it has any.
    """

    inputs = ('padded', 'limits')
    outputs = ('boxes', 'scores', 'labels')

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck = model.backbone, model.neck

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.neck(self.backbone(image))


class OneStage(Detector):
    """RetinaNet."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        cfg = model.bbox_head.test_cfg
        self.dense = DenseBoxes(model.bbox_head, cfg, proposals=False)
        self.iou, self.most = cfg['nms']['iou_threshold'], cfg['max_per_img']

    def forward(self, image: Tensor, limits: Tensor) -> tuple[Tensor, ...]:
        boxes, scores, labels = self.dense(self.features(image), limits)
        kept = separate_nms(boxes, scores, labels, self.iou, self.most)
        return boxes[kept], scores[kept], labels[kept]


class Pool(nn.Module):
    """mmdet's SingleRoIExtractor: features of boxes, each from the level that fits its size.

    Boxes leave in another order than they came, level by level: nothing has to be put back.
    """

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.finest = extractor.finest_scale
        self.layers = [
            (*layer.output_size, layer.spatial_scale, layer.sampling_ratio)
            for layer in extractor.roi_layers
        ]

    def forward(self, features: tuple[Tensor, ...], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (N, 4) -> features (N, C, h, w), and the place in ``boxes`` of each, (N,)."""
        sides = boxes[:, 2:] - boxes[:, :2]
        scale = (sides[:, 0] * sides[:, 1]).sqrt()
        levels = (scale / self.finest + 1e-6).log2().floor().clamp(0, len(self.layers) - 1)
        pooled, places = [], []
        for level, layer in enumerate(self.layers):
            (mine,) = (levels == level).nonzero(as_tuple=True)
            pooled.append(ops.roi_align(features[level], boxes[mine], *layer))
            places.append(mine)
        return torch.cat(pooled), torch.cat(places)


class BoxHead(nn.Module):
    """One of mmdet's ConvFCBBoxHead with what brings its deltas to boxes."""

    def __init__(self, extractor: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.pool, self.head = Pool(extractor), head
        self.decode = Decode(head.bbox_coder)
        self.classes = 1 if head.reg_class_agnostic else head.num_classes

    def forward(
        self, features: tuple[Tensor, ...], boxes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes (N, 4) -> logits (N, classes + 1), deltas (N, classes or 1, 4), the boxes in the
        same order, and their places."""
        x, order = self.pool(features, boxes)
        logits, deltas = self.head(x)
        return logits, deltas.reshape(-1, self.classes, 4), boxes[order], order

    def refine(self, logits: Tensor, deltas: Tensor, boxes: Tensor, limits: Tensor) -> Tensor:
        """Boxes (N, 4) as the deltas of their likeliest class move them, for the next head."""
        if self.classes > 1:
            best = logits[:, :-1].argmax(dim=1)
            deltas = deltas.gather(1, best[:, None, None].expand(-1, 1, 4))
        return self.decode(boxes, deltas[:, 0], limits)


class MaskHead(nn.Module):
    """mmdet's FCNMaskHead: the masks of the boxes' classes; (N, 28, 28) probabilities."""

    def __init__(self, extractor: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.pool, self.head = Pool(extractor), head

    def forward(self, features: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        x, order = self.pool(features, boxes)
        for conv in self.head.convs:
            x = conv(x)
        if self.head.upsample is not None:
            x = self.head.upsample(x)
            if self.head.upsample_method == 'deconv':
                x = self.head.relu(x)
        back = torch.zeros_like(order).scatter(0, order, torch.arange(order.shape[0]))
        masks = self.head.conv_logits(x)[back]
        if self.head.class_agnostic:
            return masks[:, 0].sigmoid()
        own = labels[:, None, None, None].expand(-1, 1, *masks.shape[2:])
        return masks.gather(1, own)[:, 0].sigmoid()


class TwoStage(Detector):
    """Faster, Mask and Cascade R-CNN: an RPN, one box head or several, perhaps mask heads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        rpn, rcnn = model.test_cfg['rpn'], model.test_cfg['rcnn']
        self.dense = DenseBoxes(model.rpn_head, rpn, proposals=True)
        self.rpn_iou, self.proposals = rpn['nms']['iou_threshold'], rpn['max_per_img']
        roi = model.roi_head
        self.heads = nn.ModuleList(map(BoxHead, *each_stage(roi, 'bbox')))
        self.masks = nn.ModuleList(map(MaskHead, *each_stage(roi, 'mask')) if roi.with_mask else ())
        self.score_thr = rcnn['score_thr']
        self.iou, self.most = rcnn['nms']['iou_threshold'], rcnn['max_per_img']
        if self.masks:
            self.outputs = (*self.outputs, 'masks')

    def forward(self, image: Tensor, limits: Tensor) -> tuple[Tensor, ...]:
        features = self.features(image)
        boxes, scores, levels = self.dense(features, limits)
        boxes = boxes[separate_nms(boxes, scores, levels, self.rpn_iou, self.proposals)]
        boxes, scores, labels = self.classify(features, boxes, limits)
        if not self.masks:
            return boxes, scores, labels
        masks = [head(features, boxes, labels) for head in self.masks]
        return boxes, scores, labels, sum(masks[1:], masks[0]) / len(masks)

    def classify(
        self, features: tuple[Tensor, ...], boxes: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Proposals (N, 4) -> boxes (K, 4), scores (K,), labels (K,)."""
        total = None
        for stage, head in enumerate(self.heads):
            logits, deltas, boxes, order = head(features, boxes)
            total = logits if total is None else total[order] + logits
            if stage < len(self.heads) - 1:
                boxes = head.refine(logits, deltas, boxes, limits)
        scores = (total / len(self.heads)).softmax(dim=1)[:, :-1]
        rows, labels = (scores > self.score_thr).nonzero(as_tuple=True)
        scores = scores[rows, labels]
        deltas = deltas[rows, labels if head.classes > 1 else 0]
        boxes = head.decode(boxes[rows], deltas, limits)
        kept = separate_nms(boxes, scores, labels, self.iou, self.most)
        return boxes[kept], scores[kept], labels[kept]


def each_stage(roi: nn.Module, name: str) -> tuple[list[nn.Module], list[nn.Module]]:
    """Extractors and heads of a RoI head, one a stage; mmdet's plain one has no lists."""
    head, extractor = getattr(roi, f'{name}_head'), getattr(roi, f'{name}_roi_extractor')
    if not isinstance(head, nn.ModuleList):
        return [extractor], [head]
    return list(extractor), list(head)
