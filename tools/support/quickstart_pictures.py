"""The quick start's pictures: curves of a run, and predictions beside the truth."""

import tempfile
from functools import partial
from pathlib import Path

import cv2
import matplotlib
import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData

from support.files import atomic_write

matplotlib.use('Agg')
import matplotlib.pyplot as plt

PICTURES = 6
WIDTH = 420  # of one picture, small images are drawn enlarged
SCORE = 0.5


def draw_curves(scalars: list[dict], found: list[dict], path: Path) -> None:
    """Loss of every logged iteration, and the metrics of every evaluation."""
    train = [line for line in scalars if 'loss' in line]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout='constrained')
    steps = [line['step'] for line in train]
    names = [name for name in train[-1] if 'loss' in name] if train else []
    for name in names:
        style = dict(color='black', linewidth=2) if name == 'loss' else dict(linewidth=1)
        left.plot(steps, [line[name] for line in train], label=name, **style)
    left.set(title='Training loss', xlabel='iteration', ylim=(0, None))
    left.legend(fontsize=8)
    if 'accuracy/top1' in found[-1]:
        lines = {'accuracy/top1': 'accuracy'}
        top, label = 100, '%'
    elif 'mIoU' in found[-1]:
        lines = {'mIoU': 'mIoU', 'aAcc': 'pixel accuracy'}
        top, label = 100, '%'
    else:
        lines = {
            f'coco/{kind}_mAP{end}': f'{name} AP{end[1:]}'
            for kind, name in (('bbox', 'box'), ('segm', 'mask'))
            for end in ('', '_50')
        }
        top, label = 1, 'AP'
    for key, name in lines.items():
        values = [line.get(key, 0) for line in found]
        right.plot([line['step'] for line in found], values, marker='o', label=name)
    right.set(
        title='On images not trained on',
        xlabel='iteration',
        ylabel=label,
        ylim=(0, top),
        xlim=(0, None),
    )
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    atomic_write(path, partial(figure.savefig, dpi=90))
    plt.close(figure)


def draw_confusion(runner: Runner, path: Path) -> None:
    """How many val images of each class are taken for each class; a row a true class."""
    from mmpretrain.evaluation import ConfusionMatrix

    model, samples = runner.model.eval(), []
    with torch.no_grad():
        for batch in runner.val_dataloader:
            samples += model.test_step(batch)
    matrix = ConfusionMatrix.calculate(
        torch.stack([sample.pred_score for sample in samples]).cpu(),
        torch.cat([sample.gt_label for sample in samples]).cpu(),
    )
    classes = runner.val_dataloader.dataset.metainfo['classes']
    options = dict(include_values=True, classes=classes, cmap='Blues', colorbar=False, show=False)
    figure = ConfusionMatrix.plot(matrix, **options)
    figure.set_size_inches(6, 6)
    right = float(matrix.diagonal().sum() / matrix.sum())
    figure.axes[0].set_title(f'{len(samples)} images not trained on, {right:.1%} right', pad=12)
    atomic_write(path, partial(figure.savefig, dpi=140, bbox_inches='tight'))
    plt.close(figure)


def draw_predictions(runner: Runner, path: Path) -> None:
    """The first val images, two pairs a row: truth left, prediction right."""
    model, pairs = runner.model, []
    model.eval()
    visualizer = runner.visualizer
    visualizer.dataset_meta = runner.val_dataloader.dataset.metainfo
    visualizer.alpha = 0.45
    with torch.no_grad():
        for batch in runner.val_dataloader:
            for sample in model.test_step(batch):
                pairs.append(pair(visualizer, sample))
            if len(pairs) >= PICTURES:
                break
    height = max(image.shape[0] for image in pairs)
    pairs = [
        cv2.copyMakeBorder(
            image, 4, 4 + height - len(image), 4, 4, cv2.BORDER_CONSTANT, value=(255,) * 3
        )
        for image in pairs[:PICTURES]
    ]
    rows = [np.hstack(pairs[i : i + 2]) for i in range(0, len(pairs) - len(pairs) % 2, 2)]
    sheet = np.vstack(rows) if rows else pairs[0]
    atomic_write(path, cv2.imencode(path.suffix, sheet)[1].tobytes())


def pair(visualizer, sample) -> np.ndarray:
    """Truth and prediction of one sample beside each other, (H, 2 W, 3) BGR."""
    image = mmcv.imread(sample.img_path, channel_order='rgb')
    height = round(image.shape[0] * WIDTH / image.shape[1])
    image = cv2.resize(image, (WIDTH, height), interpolation=cv2.INTER_CUBIC)
    if 'pred_instances' in sample:
        for kind in ('gt_instances', 'pred_instances'):
            setattr(sample, kind, enlarge(getattr(sample, kind), sample.ori_shape, (height, WIDTH)))
        options = dict(pred_score_thr=SCORE)
    else:
        for kind in ('gt_sem_seg', 'pred_sem_seg'):
            labels = F.interpolate(getattr(sample, kind).data[None].float(), (height, WIDTH))
            delattr(sample, kind)  # PixelData keeps its first size
            setattr(sample, kind, PixelData(data=labels[0].long().cpu()))
        options = dict(with_labels=False)
    with tempfile.TemporaryDirectory() as folder:  # mmseg's visualizer hands its pair to no one
        file = f'{folder}/pair.png'
        visualizer.add_datasample('', image, sample, out_file=file, **options)
        return cv2.imread(file)


def enlarge(instances: InstanceData, old: tuple, new: tuple) -> InstanceData:
    """Boxes and masks of an image of size `old` (H, W) on one of size `new`."""
    result = InstanceData(labels=instances.labels)
    ratio = torch.tensor([new[1] / old[1], new[0] / old[0]] * 2)
    result.bboxes = instances.bboxes.cpu() * ratio
    if 'scores' in instances:
        result.scores = instances.scores
    masks = instances.masks
    masks = torch.from_numpy(masks.masks) if hasattr(masks, 'masks') else masks.cpu()
    if len(masks):
        masks = F.interpolate(masks[None].float(), new, mode='bilinear')[0] > 0.5
    else:
        masks = masks.new_zeros((0, *new), dtype=torch.bool)
    result.masks = masks
    return result
