"""Parameters and multiply-adds of a config's model, split into backbone, neck and heads.

Two countings: ``flops_paper`` holds what the papers' counters count, convolutions and linear
layers; ``flops_total`` holds every matrix product, so the attention's scores and sums as well.
Neither counts element-wise work (norms, softmax, GELU). One multiply-add counts as one.

The model runs on PyTorch's meta device, shapes without numbers: any size takes seconds and nothing
depends on weights or images. The heads of two-stage detectors see as many proposals and masks as
their test settings allow (1000 and 100), as the papers' counter did. Heads that only train
(UperNet's auxiliary head) have parameters but no multiply-adds. What deformable attention (DINO,
Mask2Former) sums over sampled places is no matrix product.
"""

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from support import cli
from support.config import load_config
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from backbone.weights.families import FAMILIES

COUNTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.MultiheadAttention)
DEVICE = 'meta'
DEFAULT_SHAPE = {'mmdet': (800, 1280), 'mmseg': (512, 2048), 'mmpretrain': (224, 224)}
"""By task, as in the paper; its RMT-T under Semantic FPN was counted at 512 512."""


@dataclass(frozen=True)
class Cost:
    """Plain numbers: parameters and multiply-adds."""

    params: int
    flops_paper: int
    flops_total: int


_BACKBONES: dict[tuple[str, tuple[int, int], str], tuple[tuple[Tensor, ...], Cost]] = {}
"""By config and image size: features (shapes alone) and cost, which many rows share."""


def count(cfg: Config, shape: tuple[int, int]) -> dict[str, Cost]:
    """Costs of one image of ``shape`` (height, width) in backbone, neck, heads, and all of them."""
    model_cfg = copy.deepcopy(cfg.model)
    if model_cfg.backbone.type in {family.name for family in FAMILIES}:
        model_cfg.backbone.attention = 'naive'  # the formula as it stands: every product shows
    if model_cfg.type == 'ImageClassifier':
        model_cfg.pop('train_cfg', None)  # mixes batches, and says so
    init_default_scope(cfg.default_scope)
    with torch.device(DEVICE):
        model = MODELS.build(model_cfg).eval()
    parts = dict(model.named_children())
    heads = [part for name, part in parts.items() if name not in ('backbone', 'neck')]

    image = torch.empty(1, 3, *shape, device=DEVICE)
    costs = {}
    key = json.dumps(model_cfg.backbone, sort_keys=True, default=str), shape, DEVICE
    if key not in _BACKBONES:
        _BACKBONES[key] = measure([model.backbone], lambda: model.backbone(image))
    features, costs['backbone'] = _BACKBONES[key]
    if model.with_neck:
        features, costs['neck'] = measure([model.neck], lambda: model.neck(features))
    with SizesWithNumbers():
        _, cost = measure(heads, lambda: _run_heads(model, features, shape))
    params = sum(p.numel() for p in model.parameters())
    # also what stands in the model itself, as DINO's embedding of levels
    costs['heads'] = replace(cost, params=params - sum(c.params for c in costs.values()))
    costs['all'] = Cost(*map(sum, zip(*map(astuple, costs.values()), strict=True)))
    return costs


def measure(modules: list[nn.Module], forward: Callable[[], Any]) -> tuple[Any, Cost]:
    """What ``forward`` returns, and its cost; convolutions and linear layers in ``modules``."""
    paper = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], named: dict, output: Tensor) -> None:
        nonlocal paper
        if isinstance(layer, nn.Linear):
            paper += output.numel() * layer.in_features
        elif isinstance(layer, nn.MultiheadAttention):  # its four linear layers are not called
            query, key, value = inputs or (named[name] for name in ('query', 'key', 'value'))
            paper += (2 * query.numel() + key.numel() + value.numel()) * layer.embed_dim
        else:  # every weight meets each place of the output; of the input where transposed
            places = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
            paper += len(places) * places.shape[2:].numel() * layer.weight.numel()

    layers = {layer for module in modules for layer in module.modules()}
    hooks = [
        layer.register_forward_hook(add, with_kwargs=True)
        for layer in layers
        if isinstance(layer, COUNTED)
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as products:
        result = forward()
    for hook in hooks:
        hook.remove()
    params = sum(p.numel() for module in modules for p in module.parameters())
    # a multiply-add is two operations to FlopCounterMode
    return result, Cost(params, paper, products.get_total_flops() // 2)


class SizesWithNumbers(TorchFunctionMode):
    """Inside, tensors that hold numbers keep them.

    Deformable attention makes a tensor of its levels' sizes, moves it to the features' device, and
    asks for the numbers, which the meta device would have lost.
    """

    def __torch_function__(
        self, call: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        tensors = [each for each in args if isinstance(each, Tensor)]
        if call is Tensor.to and not args[0].is_meta:
            return args[0]
        if any(tensor.is_meta for tensor in tensors):
            # a single number goes with any device
            args = [a.to('meta') if isinstance(a, Tensor) and a.ndim else a for a in args]
        return call(*args, **(kwargs or {}))


def _run_heads(model: nn.Module, features: tuple[Tensor, ...], shape: tuple[int, int]) -> None:
    """Run every head that inference runs, on the features or on as many regions as it may see."""
    samples = [BaseDataElement(metainfo=dict(img_shape=shape, batch_input_shape=shape))]
    if hasattr(model, 'forward_transformer'):  # DINO and its relatives
        places = sum(feature.shape[2:].numel() for feature in features)
        if places < model.num_queries:
            raise cli.UserError(
                f'--shape {shape[0]} {shape[1]}: has {places} places, of which the model takes '
                f'{model.num_queries} as queries; give a larger one'
            )
        model.bbox_head(**model.forward_transformer(features, samples))
        return
    for name in ('rpn_head', 'bbox_head', 'panoptic_head', 'decode_head', 'head'):
        head = getattr(model, name, None)
        if head is not None:
            head(features, samples) if hasattr(head, 'pixel_decoder') else head(features)
    if getattr(model, 'roi_head', None) is not None:
        roi, limits = model.roi_head, model.test_cfg
        for kind, regions in (('bbox', limits.rpn.max_per_img), ('mask', limits.rcnn.max_per_img)):
            heads = getattr(roi, f'{kind}_head')
            extractors = getattr(roi, f'{kind}_roi_extractor')
            if isinstance(heads, nn.Module) and not isinstance(heads, nn.ModuleList):
                heads, extractors = [heads], [extractors]  # a cascade has lists
            for head, extractor in zip(heads, extractors, strict=True):
                size = extractor.roi_layers[0].output_size
                head(torch.empty(regions, extractor.out_channels, *size, device=DEVICE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n\n')[0])
    parser.add_argument('config', help='a config of det_, seg_ or cls_configs, or one made from it')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='input size; default 800 1280 in detection, 512 2048 in segmentation, else 224 224',
    )
    parser.add_argument('--json', action='store_true', help='print plain numbers as JSON')
    cli.add_cfg_options(parser)
    parser.set_defaults(work_dir=None, launcher='none', local_rank=0)
    args = parser.parse_args()

    cfg = load_config(args)
    shape = tuple(args.shape or DEFAULT_SHAPE[cfg.default_scope])
    if min(shape) < 32:
        raise cli.UserError(f'--shape {shape[0]} {shape[1]}: images are counted from 32 x 32 up')
    costs = count(cfg, shape)
    if args.json:
        parts = {part: asdict(cost) for part, cost in costs.items()}
        print(json.dumps(dict(shape=shape, **parts.pop('all'), parts=parts), indent=2))
        return
    print(f'{Path(args.config).stem} at {shape[0]} x {shape[1]}')
    print(f'{"":10}{"parameters":>14}{"paper":>14}{"total":>14}')
    for part, cost in costs.items():
        params, paper, total = cost.params / 1e6, cost.flops_paper / 1e9, cost.flops_total / 1e9
        print(f'{part:10}{params:12.2f} M{paper:12.2f} G{total:12.2f} G')
    print('paper: multiply-adds of convolutions and linear layers; total: attention products too')


if __name__ == '__main__':
    cli.run(main)
