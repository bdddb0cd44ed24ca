"""mmseg's EncoderDecoder as a graph."""

import torch.nn.functional as F
from torch import Tensor, nn


class Segmentor(nn.Module):
    """Image (1, 3, H, W), normalised -> labels (1, H, W) and logits (1, classes, h, w).

    The logits have the size of the head: mmseg enlarges them twice before it decides, to the
    size of the input and to that of the picture, which only who has the picture can.
    """

    inputs = ('padded',)
    outputs = ('labels', 'logits')

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.neck = model.neck if model.with_neck else None
        self.head = model.decode_head

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.backbone(image)
        logits = self.head(x if self.neck is None else self.neck(x))
        whole = F.interpolate(logits, size=image.shape[2:], mode='bilinear', align_corners=False)
        return whole.argmax(dim=1), logits


class Features(nn.Module):
    """The backbone alone: image -> a feature a stage, ``stride_4`` and so on."""

    inputs = ('padded',)

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.outputs = tuple(f'stride_{stride}' for stride in backbone.out_strides)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.backbone(image)
