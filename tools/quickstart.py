#!/usr/bin/env python
"""Train, evaluate and show RMT-T on a small problem, from nothing, on any machine.

`make demo` is `quickstart.py detection`: Mask R-CNN on the built-in shapes, or on `--data DIR` in
COCO's layout. `make demo-seg` is `quickstart.py segmentation`: Semantic FPN on the same scenes.
`make demo-cls` is `quickstart.py classification`: a classifier on crops of these scenes.
"""

import argparse
import json
import os
import platform
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import shapes_dataset
import torch
from coco_subset import read_coco, subset, write_coco
from crop_objects import crop_objects
from mmengine.config import Config
from mmengine.runner import Runner
from support import checks, cli, config, quickstart_pictures
from support.files import atomic_write
from support.paths import ROOT

MOST_VAL_IMAGES = 100  # of a directory given by --data: an image takes a third of a second
# columns of the summary, and how CocoMetric's names end
COLUMNS = dict(AP='', AP50='_50', AP75='_75', small='_s', medium='_m', large='_l')


@dataclass(frozen=True)
class Task:
    """What differs between the tasks."""

    title: str
    config: str
    shapes: str  # where the built-in dataset goes, below the working directory
    work_dir: str
    ade: bool = False
    crops: str = ''  # where the objects of the scenes go as images of their own
    scenes: dict[str, int] | None = None  # how many of each split, where not as many as usual


TASKS = {
    'detection': Task(
        'Mask R-CNN with RMT-T',
        'det_configs/shapes/mask_rcnn_rmt_t_fpn_shapes.py',
        'data/shapes',
        'work_dirs/demo',
    ),
    'segmentation': Task(
        'Semantic FPN with RMT-T',
        'seg_configs/shapes/fpn_rmt_t_shapes.py',
        'data/shapes_ade',
        'work_dirs/demo-seg',
        ade=True,
    ),
    'classification': Task(
        'RMT-T as a classifier',
        'cls_configs/shapes/rmt_t_shapes.py',
        'data/shapes_more',
        'work_dirs/demo-cls',
        crops='data/shapes_crops',
        # a start is worth something where it saw more than the detector
        scenes=dict(shapes_dataset.SPLITS, train=2400),
    ),
}


def say(text: str) -> None:
    print(f'\n== {text}', flush=True)


def load_config(task: Task, data: Path, work_dir: Path, options: dict) -> Config:
    """The task's config on the dataset at `data`."""
    args = argparse.Namespace(
        config=str(ROOT / task.config),
        cfg_options={**options, 'data_root': str(data)},
        work_dir=str(work_dir),
        launcher='none',
        local_rank=0,
    )
    return config.load_config(args)


def fit_to_coco(cfg: Config, data: Path, work_dir: Path) -> None:
    """Give the config the classes of a COCO directory, and a short val split of a long one."""
    files = {s: data / f'annotations/instances_{s}2017.json' for s in ('train', 'val')}
    for path in (*files.values(), data / 'train2017', data / 'val2017'):
        if not path.exists():
            raise cli.UserError(
                f'{path}: not found; --data (DATA=) takes a directory with train2017/, val2017/, '
                'annotations/instances_{train,val}2017.json'
            )
    content = read_coco(files['val'])
    classes = [category['name'] for category in content['categories']]
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        if list(loader.dataset.metainfo.classes) != classes:  # else the config's colours stay
            loader.dataset.metainfo = dict(classes=classes)
    for head in (cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
        head.num_classes = len(classes)
    if len(content['images']) > MOST_VAL_IMAGES:
        short = work_dir / f'val_{MOST_VAL_IMAGES}.json'
        write_coco(subset(content, MOST_VAL_IMAGES), short)
        say(f'evaluating on {MOST_VAL_IMAGES} of {len(content["images"])} images: {short}')
        for name in ('val', 'test'):
            cfg[f'{name}_dataloader'].dataset.ann_file = str(short)
            cfg[f'{name}_evaluator'].ann_file = str(short)


def read_scalars(runner: Runner) -> list[dict]:
    """The log of a finished run: a dict for each line, training and evaluation mixed."""
    path = Path(runner.log_dir) / 'vis_data' / 'scalars.json'
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluations(scalars: list[dict], last: int) -> list[dict]:
    """Of a run's log, the evaluations: `step` and metrics, oldest first, `last` the final step.

    Without a single detection CocoMetric says nothing; its AP is 0.
    """
    headlines = {'coco/bbox_mAP', 'mIoU', 'accuracy/top1'}
    found = [line for line in scalars if headlines & set(line)]
    if not found or found[-1]['step'] < last:
        print('no detection at all: AP is 0')
        keys = [f'coco/{kind}_mAP{end}' for kind in ('bbox', 'segm') for end in COLUMNS.values()]
        found.append({'step': last, **dict.fromkeys(keys, 0.0)})
    return found


def summary(metrics: dict) -> str:
    """The metrics as a table."""
    if 'accuracy/top1' in metrics:
        return f'accuracy{metrics["accuracy/top1"]:8.1f} %'
    if 'mIoU' in metrics:
        names = ('mIoU', 'mAcc', 'aAcc')
        return '\n'.join(f'{name:6s}{metrics[name]:8.2f} %' for name in names)
    lines = ['      ' + ''.join(f'{name:>8s}' for name in COLUMNS)]
    for name, key in (('box', 'bbox'), ('mask', 'segm')):
        values = [metrics.get(f'coco/{key}_mAP{end}', float('nan')) for end in COLUMNS.values()]
        lines.append(f'{name:6s}' + ''.join(f'{value:8.3f}' for value in values))
    return '\n'.join(lines)


def run(
    task: Task,
    data: str | None = None,
    work_dir: str | None = None,
    options: dict | None = None,
    counts: dict[str, int] | None = None,
) -> dict:
    """Make the data, train, evaluate, draw; returns what is written to `results.json`.

    `options` changes the config, `counts` the number of built-in scenes of each split.
    """
    start = time.perf_counter()
    out = Path(work_dir or task.work_dir)
    root = Path(data or task.shapes)
    say(f'1/4 data: {root}')
    if data is None:
        made = shapes_dataset.make_dataset(root, task.ade, counts or task.scenes)
        print(f'built-in shapes, {"made" if made else "there already"}', flush=True)
    if task.crops:
        root, scenes = Path(task.crops), root
        made = crop_objects(scenes, root, margin=0.4, background=True)
        print(f'their objects at {root}, {"made" if made else "there already"}', flush=True)
    cfg = load_config(task, root, out, options or {})
    if not (task.ade or task.crops):
        fit_to_coco(cfg, root, out)
    checks.check_data(cfg, ('train', 'val'))

    cores = len(os.sched_getaffinity(0))
    say(
        f'2/4 training: {task.title}, {cfg.train_cfg.max_iters} iterations of '
        f'{cfg.train_dataloader.batch_size} images from random weights, on {cores} cores, and '
        'evaluating on images it never sees; "eta" is the time left'
    )
    runner = config.build_runner(cfg)
    checks.build_loops(runner, ('train', 'val'))
    trained = time.perf_counter()
    runner.train()
    trained = time.perf_counter() - trained
    scalars = read_scalars(runner)
    found = evaluations(scalars, runner.iter)

    say('3/4 pictures')
    quickstart_pictures.draw_curves(scalars, found, out / 'curves.png')
    if task.crops:
        pictures = f'{out}/confusion.png (a row a true class)'
        quickstart_pictures.draw_confusion(runner, out / 'confusion.png')
    else:
        pictures = f'{out}/predictions.png (truth left, prediction right)'
        quickstart_pictures.draw_predictions(runner, out / 'predictions.png')

    results = dict(
        task=task.title,
        config=task.config,
        data='built-in shapes' if data is None else str(data),
        images=dict(
            train=len(runner.train_dataloader.dataset), val=len(runner.val_dataloader.dataset)
        ),
        iterations=cfg.train_cfg.max_iters,
        batch_size=cfg.train_dataloader.batch_size,
        metrics={key: value for key, value in found[-1].items() if key != 'step'},
        evaluations=found,
        seconds=dict(
            train_and_evaluate=round(trained, 1), total=round(time.perf_counter() - start, 1)
        ),
        # ru_maxrss is in KiB on Linux
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        machine=dict(cores=cores, processor=platform.machine(), torch=torch.__version__),
    )
    atomic_write(out / 'results.json', json.dumps(results, indent=1) + '\n')
    say(f'4/4 result on {results["images"]["val"]} images not trained on')
    print(summary(results['metrics']))
    print(
        f'{results["seconds"]["total"]:.0f} s in all, {trained:.0f} s of them training and '
        f'evaluating; peak memory {results["peak_memory_bytes"] / 1e9:.1f} GB\n'
        f'pictures: {pictures}, {out}/curves.png\n'
        f'numbers: {out}/results.json',
        flush=True,
    )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('task', nargs='?', choices=TASKS, default='detection')
    parser.add_argument('--data', help='a directory in the layout of COCO; detection only')
    parser.add_argument('--work-dir', help='for logs, weights and pictures')
    cli.add_cfg_options(parser)
    args = parser.parse_args()
    task = TASKS[args.task]
    if args.data and (task.ade or task.crops):
        raise cli.UserError(f'--data: the {args.task} demo runs on the built-in scenes alone')
    run(task, args.data, args.work_dir, args.cfg_options)


if __name__ == '__main__':
    cli.run(main)
