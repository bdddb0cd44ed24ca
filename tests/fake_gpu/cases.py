"""RMT and whole models on a pretended GPU: ``python cases.py '[{"arch": "tiny", ...}, ...]'``.

Prints a JSON list, a dict a case: what :func:`network`, ... return, or the ``error``.
"""

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import pretend  # before torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from backbone import RMT
from backbone.attention import IMPLEMENTATIONS
from backbone.kernels import build


def network(
    arch: str, attention: str, dtype: str, with_cp: bool, training: bool, shape: list[int]
) -> dict:
    """The backbone alone, forward, and backward where ``training``."""
    model = RMT(arch, attention=attention, with_cp=with_cp)
    with FakeTensorMode():
        pretend.to_gpu(model).train(training)
        image = torch.randn(*shape, device='cuda')
        watch, kept, masked = pretend.Watch(), [], []
        with watch, _attention_watched(attention, watch, kept), torch.set_grad_enabled(training):
            with pretend.autocast(getattr(torch, dtype)), _masked_attention_watched(masked):
                features = model(image)
            if training:
                sum(f.float().mean() for f in features).backward()
    return dict(
        devices=sorted({f.device.type for f in features}),
        dtypes=sorted({str(f.dtype) for f in features}),
        shapes=[list(f.shape) for f in features],
        without_gradient=[n for n, p in model.named_parameters() if training and p.grad is None],
        largest=watch.largest,
        attention=watch.attention,
        masked=max(masked, default=0),
        kept=kept,
        cpu_kernels=build._library is not None or build._problem,
    )


@contextmanager
def _masked_attention_watched(given: list[int]) -> Iterator[None]:
    """Notes the bytes that each call of PyTorch's masked attention is given, as they lie in memory.

    On a GPU that is all: here its inside is PyTorch's formula, which writes the scores out.
    """
    plain = F.scaled_dot_product_attention

    def attention(*tensors: Tensor, attn_mask: Tensor) -> Tensor:
        all_given = *tensors, attn_mask
        assert len({t.dtype for t in all_given}) == 1
        assert all(stride % 8 == 0 for stride in attn_mask.stride()[:-1])
        storages = {id(t.untyped_storage()): t.untyped_storage().nbytes() for t in all_given}
        given.append(sum(storages.values()))
        return plain(*tensors, attn_mask=attn_mask)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


class _attention_watched:
    """Tells the watch where attention begins and ends, and notes what it keeps for backward.

    ``kept`` gets a pair a call: the bytes kept beside the tables, and the bytes of q, k, v, the
    result and the sums of the softmax, which are float32 under autocast, too.
    """

    def __init__(self, name: str, watch: pretend.Watch, kept: list) -> None:
        self.module, self.plain = IMPLEMENTATIONS[name], IMPLEMENTATIONS[name].attend
        self.watch, self.kept = watch, kept

    def __enter__(self) -> None:
        def attend(q: Tensor, k: Tensor, v: Tensor, tables: tuple, axial: bool) -> Tensor:
            saved: dict[int, Tensor] = {}
            made_before = {id(t.untyped_storage()) for t in tables}

            def keep(t: Tensor) -> Tensor:
                if id(t.untyped_storage()) not in made_before:
                    saved[id(t.untyped_storage())] = t
                return t

            self.watch.in_attention = True
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
                out = self.plain(q, k, v, tables, axial)
            self.watch.in_attention = False
            sums = [t for t in saved.values() if t.dtype != q.dtype]
            own = sum(t.numel() * t.element_size() for t in (q, k, v, out, *sums))
            self.kept.append((sum(t.untyped_storage().nbytes() for t in saved.values()), own))
            return out

        self.module.attend = attend

    def __exit__(self, *_: object) -> None:
        self.module.attend = self.plain


def upernet(attention: str, dtype: str) -> dict:
    """UperNet RMT-S up to its heads' outputs, 512 x 512; mmseg's accuracy takes no fake tensors."""
    model = _build('seg_configs/upernet_rmt_s_160k_ade20k.py', attention)
    with FakeTensorMode():
        pretend.to_gpu(model).train()
        image = torch.randn(2, 3, 512, 512, device='cuda')
        with pretend.autocast(getattr(torch, dtype)):
            features = model.extract_feat(image)
            outputs = model.decode_head(features), model.auxiliary_head(features)
        labels = torch.zeros(2, 512, 512, dtype=torch.int64, device='cuda')
        sum(F.cross_entropy(_at(t.float(), labels), labels) for t in outputs).backward()
    return _gradients(model)


def _at(logits: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(logits, labels.shape[1:], mode='bilinear', align_corners=False)


def mask_rcnn(attention: str, dtype: str) -> dict:
    """Mask R-CNN RMT-T up to its heads' outputs; NMS and RoIAlign know no fake tensors."""
    model = _build('det_configs/mask_rcnn_rmt_t_fpn_1x_coco.py', attention)
    with FakeTensorMode():
        pretend.to_gpu(model).train()
        image = torch.randn(1, 3, 800, 1344, device='cuda')
        with pretend.autocast(getattr(torch, dtype)):
            features = model.extract_feat(image)
            outputs = [*model.rpn_head(features)]
            regions = features[0].new_empty(8, 256, 7, 7)
            outputs += model.roi_head.bbox_head(regions)
            outputs += [model.roi_head.mask_head(features[0].new_empty(8, 256, 14, 14))]
        flat = torch.utils._pytree.tree_leaves(outputs)
        sum(t.float().mean() for t in flat).backward()
    return _gradients(model)


def _build(config: str, attention: str) -> nn.Module:
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, init_default_scope

    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.attention = attention
    return revert_sync_batchnorm(MODELS.build(cfg.model))  # SyncBN knows no fake tensors


def _gradients(model: nn.Module) -> dict:
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return dict(
        devices=sorted({g.device.type for g in grads.values() if g is not None}),
        without_gradient=[n for n, g in grads.items() if g is None],
    )


def main() -> None:
    results = []
    for case in json.loads(sys.argv[1]):
        kind = globals()[case.pop('model', 'network')]
        try:
            results.append(kind(**case))
        except Exception as error:  # noqa: BLE001  (the test shows it)
            traceback.print_exc()
            results.append(dict(error=f'{type(error).__name__}: {error}'))
    print(json.dumps(results))


if __name__ == '__main__':
    main()
