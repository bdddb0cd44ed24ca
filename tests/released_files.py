"""Weights files as the released ones are, made from our models and the rules of their layout."""

import argparse
import contextlib
import hashlib
from collections.abc import Iterator

import pytest
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from backbone import RAVLT, RMT, MAViT
from backbone.network import Network
from backbone.weights.families import RMT_FILES, family_in

# small enough that a file takes milliseconds; has everything that the large variants have
MINI = dict(
    channels=(16, 24, 32, 48),
    depths=(1, 1, 2, 1),
    heads=(2, 3, 4, 6),
    decay_span=(4, 4, 6, 6),
    ffn_ratio=(3, 3, 2, 2),
    axial=(True, True, True, False),
    layer_scale=(None, None, 0.5, 0.5),
)
MINI_RAVLT = dict(
    channels=(16, 24, 32, 48),
    depths=(1, 1, 2, 1),
    heads=(1, 2, 2, 4),
    ffn_ratio=(3.5, 3.5, 3.5, 3.5),
    layer_scale=(0.5, 0.5, 0.5, 0.5),
)
"""The same of RAVLT and MAViT."""
MINIS = {RMT: MINI, RAVLT: MINI_RAVLT, MAViT: MINI_RAVLT}


def numbered(model: nn.Module, start: float = 1.0) -> dict[str, Tensor]:
    """A state dict whose tensors all differ: each is full of its own number. Quick to make."""
    return {
        name: torch.full_like(tensor, int(start) + i if tensor.dtype == torch.int64 else start + i)
        for i, (name, tensor) in enumerate(model.state_dict().items())
    }


def released(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict of the model under the released names and shapes, without the tables."""
    return family_in(model).to_released(state_dict)


def with_tables(
    state_dict: dict[str, Tensor], model: Network, prefix: str = ''
) -> dict[str, Tensor]:
    """Add the derived tables, which a released file has beside its weights."""
    tables = family_in(model).tables(model.variant)
    return {**state_dict, **{prefix + name: table for name, table in tables.items()}}


def classifier(channels: int, token_label: bool) -> dict[str, Tensor]:
    """The top of an ImageNet model: projection, norm, classifier, and one for token labels."""
    top = nn.ModuleDict(
        dict(proj=nn.Linear(channels, 1024), norm=nn.BatchNorm2d(1024), head=nn.Linear(1024, 1000))
    )
    if token_label:
        top['aux_head'] = nn.Linear(channels, 1000)
    return dict(top.state_dict())


def convolutional_classifier(channels: int, width: int) -> dict[str, Tensor]:
    """The same of RAVLT and MAViT."""
    proj, head = nn.Conv2d(channels, width, 1), nn.Conv2d(width, 1000, 1)
    return dict(nn.ModuleDict(dict(proj=proj, norm=nn.BatchNorm2d(width), head=head)).state_dict())


def imagenet_weights(model: Network, token_label: bool, start: float = 1.0) -> dict[str, Tensor]:
    """The state dict of an ImageNet file: no output norms, but a classifier."""
    family, channels = family_in(model), model.variant.channels[-1]
    weights = with_tables(released(numbered(model, start), model), model)
    weights = {n: t for n, t in weights.items() if not n.startswith('extra_norms.')}
    if family is RMT_FILES:
        return {**weights, **classifier(channels, token_label)}
    return {**weights, **convolutional_classifier(channels, family.top_widths[0])}


def imagenet_file(model: Network, token_label: bool = False) -> dict:
    """A released ImageNet file, with all that a training script leaves in one."""
    return {
        'model': imagenet_weights(model, token_label),
        'model_ema': imagenet_weights(model, token_label, start=0.5),
        'optimizer': {'state': {0: {'exp_avg': torch.zeros(3)}}, 'param_groups': [{'lr': 1e-3}]},
        'epoch': 299,
        'args': argparse.Namespace(model='RMT', batch_size=128, lr=1e-3),
    }


def downstream_file(model: nn.Module, weights: dict, classes: tuple[str, ...] = ()) -> dict:
    """A released detector or segmentor file with these weights of the model."""
    weights = dict(weights)
    backbone = model.backbone
    missing = [i for i in range(4) if str(i) not in backbone.extra_norms]  # the release has all
    for i in missing:
        channels = backbone.variant.channels[i]
        weights[f'backbone.extra_norms.{i}.weight'] = torch.ones(channels)
        weights[f'backbone.extra_norms.{i}.bias'] = torch.zeros(channels)
    weights = released(weights, backbone)
    meta = dict(mmdet_version='2.11.0', config='model = dict()', epoch=12, iter=1000)
    if classes:
        meta['CLASSES'] = classes
    return {'meta': meta, 'state_dict': with_tables(weights, backbone, 'backbone.')}


class Detector(BaseModel):
    """The shape of a detector: a mini backbone, a neck, and a head with a layer per class."""

    def __init__(
        self, num_classes: int = 3, network: type[Network] = RMT, **backbone: object
    ) -> None:
        super().__init__()
        self.backbone = network(MINIS[network], **backbone)
        self.neck = nn.Conv2d(48, 8, 1)
        self.decode_head = nn.ModuleDict(
            dict(scale_heads=nn.Conv2d(8, 8, 1), conv_seg=nn.Conv2d(8, num_classes, 1))
        )

    def forward(self, *_: object) -> None:
        raise NotImplementedError


def detector_file(num_classes: int = 3, network: type[Network] = RMT) -> dict:
    """A trained file of :class:`Detector`."""
    model = Detector(num_classes, network)
    return downstream_file(model, numbered(model))


def headless_file() -> dict:
    """The same, as ``--drop-head`` leaves it."""
    file = detector_file()
    headless = ['decode_head.conv_seg.weight', 'decode_head.conv_seg.bias']
    for name in headless:
        del file['state_dict'][name]
    file['meta']['rmt'] = {'dropped_head': headless}
    return file


def names_digest(state_dict: dict[str, Tensor]) -> str:
    """SHA-256 of all names and shapes."""
    lines = sorted(f'{name} {list(tensor.shape)}' for name, tensor in state_dict.items())
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def assert_holds(model: nn.Module, weights: dict[str, Tensor], but: str = 'no exception') -> None:
    """Every parameter and buffer of the model has the given value, those with ``but`` apart."""
    for name, tensor in model.state_dict().items():
        if but not in name:
            assert torch.equal(tensor, weights[name]), name


@contextlib.contextmanager
def uninitialised() -> Iterator[None]:
    """Build modules without drawing their weights: saves seconds for a large model."""
    with pytest.MonkeyPatch.context() as patch:
        for layer in (nn.Linear, nn.modules.conv._ConvNd):
            patch.setattr(layer, 'reset_parameters', lambda self: None)
        patch.setattr('backbone.rmt.init_linear', lambda module: None)
        patch.setattr('backbone.ravlt.init_normal', lambda module: None)
        yield
