"""What ``tools/check_gpu.py`` looks at, a step a process: a bad write ends the GPU's use in one.

``python -m support.gpu_checks STEP DEVICE``, in tools/, writes its findings, a JSON object, as the
last line of stdout.
"""

import importlib.metadata
import importlib.util
import json
import platform
import shutil
import sys
from pathlib import Path

import torch

import support  # noqa: F401  (makes `backbone` importable)
from backbone.attention import IMPLEMENTATIONS, self_check

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEAD_DIMS = (16, 32)  # of T, S, B and L
SMALL_GRID = (3, 23)  # more than a tile of the kernels, 64 places
PACKAGES = ('torch', 'triton', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'numpy')
DISTRIBUTIONS = {'mmcv': 'onedl-mmcv', 'mmengine': 'onedl-mmengine', 'mmdet': 'onedl-mmdetection',
                 'mmseg': 'onedl-mmsegmentation'}  # fmt: skip


def versions(device: torch.device) -> dict:
    """The machine and its packages."""
    found = dict(
        system=f'{platform.system()} {platform.machine()}',
        python=platform.python_version(),
        cuda=torch.version.cuda or '',
        rocm=torch.version.hip or '',
        driver=_driver(),
        compiler=next(filter(None, map(shutil.which, ('gcc', 'cc', 'clang'))), ''),
        packages={name: _version(name) for name in PACKAGES},
    )
    if device.type == 'cuda':
        gpu = torch.cuda.get_device_properties(device)
        found |= dict(gpu=gpu.name, capability=f'{gpu.major}.{gpu.minor}', memory=gpu.total_memory)
    return found


def _version(package: str) -> str:
    for name in (DISTRIBUTIONS.get(package, package), package):
        try:
            return f'{importlib.metadata.version(name)} ({name})'
        except importlib.metadata.PackageNotFoundError:
            continue
    return ''


def _driver() -> str:
    file = Path('/proc/driver/nvidia/version')
    return file.read_text().splitlines()[0] if file.exists() else ''


def implementations(device: torch.device) -> dict:
    """Why each cannot run: by name, type and head width, '' where it can."""
    return {
        name: {
            f'{dtype} {width}'.removeprefix('torch.'): each.supports(device, dtype, width)
            for dtype in DTYPES
            for width in HEAD_DIMS
        }
        for name, each in IMPLEMENTATIONS.items()
    }


def exactness(device: torch.device) -> dict:
    """The self-check of each that can run there: the largest deviation, or what it raises."""
    found = {}
    for name, each in IMPLEMENTATIONS.items():
        for dtype, width, grid in _cases(name, device):
            if each.supports(device, dtype, width):
                continue
            key = f'{name} {dtype} {width}'.replace('torch.', '')
            try:
                errors = [e for _, e in self_check.deviations(each, device, dtype, width, grid)]
                worst = float(torch.tensor(errors).max())  # NaN where one is
                found[key] = dict(worst=worst, limit=self_check.LIMITS[dtype])
            except Exception as error:  # noqa: BLE001  (told, not handled)
                found[key] = dict(error=f'{type(error).__name__}: {error}'.splitlines()[0])
    return found


def _cases(name: str, device: torch.device) -> list[tuple[torch.dtype, int, tuple[int, int]]]:
    """Types, head widths and a grid to check: on a GPU every pair on the self-check's own."""
    if device.type == 'cuda':
        return [(dtype, width, self_check.GRID) for dtype in DTYPES for width in HEAD_DIMS]
    if name == 'flex':  # has no gradients on a CPU
        return []
    # seconds each in Triton's interpreter, which multiplies bfloat16 wrongly; cards do not
    return [(dtype, width, SMALL_GRID) for dtype, width in zip(DTYPES, HEAD_DIMS, strict=False)]


def operators(device: torch.device) -> dict:
    """mmcv's compiled operators: do they run there?"""
    if importlib.util.find_spec('mmcv') is None:
        return dict(error='mmcv is not installed')
    try:
        from mmcv.ops import nms, roi_align

        boxes = torch.tensor([[0.0, 0, 8, 8], [1, 1, 8, 8], [20, 20, 28, 28]], device=device)
        kept, _ = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)
        rois = torch.cat([boxes.new_zeros(3, 1), boxes], dim=1)
        roi_align(torch.ones(1, 4, 32, 32, device=device), rois, (7, 7))
        return dict(nms=len(kept))
    except (ImportError, RuntimeError, NotImplementedError) as error:
        return dict(error=str(error).splitlines()[0])


def training_step(device: torch.device) -> dict:
    """One step of Mask R-CNN RMT-T in mixed precision on a random image with two objects."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.structures import InstanceData

    from support.config import from_file
    from support.paths import ROOT

    cfg = from_file(ROOT / 'det_configs/mask_rcnn_rmt_t_fpn_1x_coco.py')
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).to(device).train()
    side = 512 if device.type == 'cuda' else 128
    masks = BitmapMasks([torch.ones(side, side, dtype=torch.uint8).numpy()] * 2, side, side)
    boxes = torch.tensor([[8.0, 8, 60, 60], [30, 20, 100, 90]], device=device)
    truth = InstanceData(bboxes=boxes, labels=torch.tensor([0, 3], device=device), masks=masks)
    shape = dict(img_shape=(side, side), pad_shape=(side, side), ori_shape=(side, side),
                 scale_factor=(1.0, 1.0), batch_input_shape=(side, side))  # fmt: skip
    sample = DetDataSample(metainfo=shape, gt_instances=truth, ignored_instances=InstanceData(
        bboxes=boxes[:0]))  # fmt: skip
    image = torch.randn(1, 3, side, side, device=device)
    with torch.autocast(device.type, torch.float16, enabled=device.type == 'cuda'):
        losses = model.loss(image, [sample])
    total = sum(
        each.float().sum()
        for name, value in losses.items()
        if 'loss' in name
        for each in (value if isinstance(value, list) else [value])
    )
    total.backward()
    finite = all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    return dict(loss=float(total.detach()), finite_gradients=finite)


STEPS = {
    step.__name__: step for step in (versions, implementations, exactness, operators, training_step)
}


def main() -> None:
    step, device = sys.argv[1:]
    print(json.dumps(STEPS[step](torch.device(device))))


if __name__ == '__main__':
    main()
