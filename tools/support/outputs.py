"""What tools/test.py writes beside the metrics: predictions in one file, and pictures.

Neither may cost the metrics: what goes wrong with a file is kept in ``problem`` until the end.
"""

import os

import cv2
import mmcv
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, DumpResults
from mmengine.fileio import dump, get
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS, METRICS
from mmengine.runner import Runner

from support import cli
from support.files import atomic_write, check_file, check_folder, picture_names
from support.prediction.drawing import draw_sample


@METRICS.register_module()
class DumpSegResults(DumpResults):
    """Predicted maps without the logits and the truth: those are 300 times the size."""

    def process(self, data_batch: dict, data_samples: list[dict]) -> None:
        keep = ('pred_sem_seg', 'img_path', 'ori_shape')
        super().process(data_batch, [{k: s[k] for k in keep if k in s} for s in data_samples])


@METRICS.register_module()
class PredictionsFile(BaseMetric):
    """What a framework's dump keeps of the predictions, written whole or not at all."""

    def __init__(self, by: dict) -> None:
        super().__init__(prefix='predictions')  # of no metric; mmengine warns where there is none
        self.by = METRICS.build(by)
        self.results = self.by.results
        self.problem = ''

    def process(self, data_batch: dict, data_samples: list[dict]) -> None:
        self.by.process(data_batch, data_samples)

    def compute_metrics(self, results: list[dict]) -> dict:
        path = self.by.out_file_path
        try:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            atomic_write(path, lambda beside: dump(results, str(beside)))
        except OSError as error:
            self.problem = f'--out {path}: {error.strerror}; the predictions are not written'
        else:
            print_log(f'Predictions: {path}', logger='current')
        return {}


@HOOKS.register_module(name=['PicturesHook', 'SegPicturesHook'])
class PicturesHook(Hook):
    """One picture an image, named by the image's place below the folder that all share.

    The frameworks' own hooks name pictures by the file alone, so that images of one name in several
    folders overwrite each other's, or can not choose the place.

    Args:
        options: of the visualizer.
    """

    def __init__(self, out_dir: str, backend_args: dict | None = None, **options: object) -> None:
        self.out_dir, self.backend_args, self.options = out_dir, backend_args, options
        self.problem = ''

    def before_test(self, runner: Runner) -> None:
        dataset = runner.test_dataloader.dataset
        paths = [dataset.get_data_info(i).get('img_path') for i in range(len(dataset))]
        if None in paths:
            self.problem = f'--show-dir {self.out_dir}: its images are no files; no pictures'
            return
        segmentation = runner.cfg.default_scope == 'mmseg'
        self.names = picture_names(paths, as_png if segmentation else as_it_is)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: list
    ) -> None:
        for sample in outputs if not self.problem else ():
            name = self.names[sample.img_path]
            content = get(sample.img_path, backend_args=self.backend_args)
            try:
                draw_sample(
                    runner.visualizer,
                    name,
                    mmcv.imfrombytes(content, channel_order='rgb'),
                    sample,
                    out_file=os.path.join(self.out_dir, name),
                    **self.options,
                )
            except OSError as error:
                place = os.path.join(self.out_dir, name)
                self.problem = f'--show-dir: {place}: {error.strerror}; no picture from there on'


def as_png(name: str) -> str:
    return os.path.splitext(name)[0] + '.png'


def as_it_is(name: str) -> str:
    """The image's own name where OpenCV writes its format, e.g. GIF before 4.12 it does not."""
    return name if cv2.haveImageWriter(name) else f'{name}.png'


def add_outputs(cfg: Config, out: str | None, show_dir: str | None) -> None:
    """Add to ``cfg`` what writes the predictions and the pictures.

    Raises:
        UserError: they cannot be written there.
    """
    segmentation = cfg.default_scope == 'mmseg'
    if out:
        if not out.endswith(('.pkl', '.pickle')):
            raise cli.UserError(f'--out {out}: give a file that ends in .pkl')
        check_file(out, '--out')
        kinds = {'mmseg': 'DumpSegResults', 'mmpretrain': 'DumpResults'}
        kept = kinds.get(cfg.default_scope, 'DumpDetResults')
        metrics = cfg.test_evaluator
        cfg.test_evaluator = [
            *(metrics if isinstance(metrics, list) else [metrics]),
            dict(type='PredictionsFile', by=dict(type=kept, out_file_path=out)),
        ]
    if show_dir:
        check_folder(show_dir, '--show-dir')
        hook = dict(type='PicturesHook', out_dir=os.path.abspath(show_dir))
        drawing = cfg.default_hooks.get('visualization') or {}
        if segmentation:
            hook['with_labels'] = False
        elif cfg.default_scope == 'mmpretrain':
            hook['draw_gt'] = True
        elif drawing.get('type') == 'DetVisualizationHook':
            hook['pred_score_thr'] = drawing.get('score_thr', 0.3)
            hook['backend_args'] = drawing.get('backend_args')
        else:  # one of another kind of model knows how to draw it
            drawing.update(draw=True, test_out_dir=hook['out_dir'])
            return
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def problems(runner: Runner) -> list[str]:
    """What could not be written."""
    outputs = (*runner.hooks, *runner.test_evaluator.metrics)
    return [output.problem for output in outputs if getattr(output, 'problem', '')]
