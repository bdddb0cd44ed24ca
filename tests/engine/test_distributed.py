"""Two processes with an image each compute what one process computes with both images."""

from pathlib import Path

import torch
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from processes import run
from released_files import MINI
from torch import Tensor, nn

from backbone.rmt import RMT


def model() -> nn.Module:
    """A small RMT with SyncBN, as in every config, that is BN without a GPU; statistics frozen.

    Live ones differ: there each process normalises over its own images.
    """
    torch.manual_seed(0)
    backbone = RMT(arch=MINI, drop_path_rate=0.0, norm_cfg=dict(type='SyncBN'), norm_eval=True)
    return revert_sync_batchnorm(backbone).train()


def loss(features: tuple[Tensor, ...]) -> Tensor:
    """A mean over images, not linear in them."""
    return sum(feature.square().mean() for feature in features)


def images() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def compute(folder: Path) -> None:
    torch.distributed.init_process_group('gloo')
    rank = torch.distributed.get_rank()
    parallel = MMDistributedDataParallel(model(), broadcast_buffers=False)
    features = parallel(images()[rank : rank + 1])
    value = loss(features)
    value.backward()
    gradients = {name: p.grad for name, p in parallel.module.named_parameters()}
    found = dict(features=[f.detach() for f in features], loss=value.detach(), gradients=gradients)
    torch.save(found, folder / f'{rank}.pth')
    torch.distributed.destroy_process_group()


def test_features_losses_and_gradients_equal_those_of_one_process(tmp_path: Path) -> None:
    ended = run(compute, tmp_path, processes=2)
    assert [process.status for process in ended] == [0, 0], ended
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    whole = model()
    features = whole(images())
    loss(features).backward()
    for mine, *theirs in zip(features, first['features'], second['features'], strict=True):
        torch.testing.assert_close(mine, torch.cat(theirs), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        (first['loss'] + second['loss']) / 2, loss(features), rtol=0, atol=1e-5
    )
    assert first['loss'] != second['loss']
    for name, parameter in whole.named_parameters():
        expected = parameter.grad
        for found in (first, second):
            limit = 1e-5 * max(1.0, expected.abs().max().item())
            torch.testing.assert_close(found['gradients'][name], expected, rtol=0, atol=limit)
