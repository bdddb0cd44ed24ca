"""What to train with: every number of a new config, and why. To tune the recipe, edit this file."""

import os
from dataclasses import dataclass

import torch

from backbone.rmt import VARIANTS

SECONDS = {'mask_rcnn': 0.67, 'faster_rcnn': 0.67, 'retinanet': 0.67, 'fpn': 0.6, 'upernet': 0.9}
"""Of one processor core for a training step of RMT-T, by head: for an image of 256 × 192 with the
narrow heads of `_base_/*_narrow.py`. Measured on an AMD EPYC of 2.4 GHz (AVX2)."""

DEPTH = {'tiny': 1.0, 'small': 1.9, 'base': 3.6, 'large': 5.8}
"""The same for the other sizes, as multiples of RMT-T."""

TESTING, FOR_VALIDATION = 0.4, 0.1
"""What an image takes in testing, as a part of training; the part of the time for validation."""

BOX_HEADS, MASK_HEADS = ('retinanet', 'faster_rcnn'), ('mask_rcnn',)
MAP_HEADS = ('fpn', 'upernet')
BASES = {
    'mask_rcnn': 'mask_rcnn_1x',
    'faster_rcnn': 'faster_rcnn_1x',
    'retinanet': 'retinanet_1x',
    'fpn': 'fpn_80k',
    'upernet': 'upernet_160k',
}
"""The full-size base of each head; the narrow one is called ``HEAD_narrow``."""


@dataclass(frozen=True)
class Machine:
    """Where the training is going to run."""

    gpu: bool
    cores: int
    gpu_bytes: int = 0

    @classmethod
    def here(cls) -> 'Machine':
        cores = len(os.sched_getaffinity(0))
        if not torch.cuda.is_available():
            return cls(False, cores)
        return cls(True, cores, torch.cuda.get_device_properties(0).total_memory)

    def __str__(self) -> str:
        if self.gpu:
            return f'a GPU of {self.gpu_bytes / 2**30:.0f} GiB'
        return f'{self.cores} processor core{"s" if self.cores > 1 else ""}'


@dataclass(frozen=True)
class Case:
    """What the recipe depends on.

    Attributes:
        head: a key of :data:`BASES`.
        arch: of the backbone.
        images, val_images: how many there are.
        start: ``'nothing'``, ``'backbone'`` (ImageNet), ``'detector'`` (all but the class layers,
            where the classes differ) or ``'again'`` (a detector of these classes: another round).
        schooled: whether the weights to start from saw a long training, so that their first layers
            can be kept as they are.
        full_width: whether the file's heads are as wide as the paper's; None without such a file.
        minutes: how long the training may take on a CPU.
        side: the longer side of an image, where it is given.
    """

    head: str
    arch: str
    images: int
    val_images: int
    machine: Machine
    start: str = 'nothing'
    schooled: bool = True
    full_width: bool | None = None
    minutes: float = 40
    side: int | None = None

    @property
    def knows_little(self) -> bool:
        """Whether nearly all is to be learnt."""
        return self.start == 'nothing' or not self.schooled


@dataclass(frozen=True)
class Choice:
    """A value and the reason for it, as a comment says it."""

    value: object
    why: str


Recipe = dict[str, Choice]


def recipe(case: Case) -> Recipe:
    """All numbers of the config for a case."""
    chosen: Recipe = {}
    chosen['narrow'] = _narrow(case)
    chosen['side'] = _side(case)
    chosen['batch'], chosen['accumulate'] = _batch(case)
    times = _validations(case, chosen['side'].value)
    chosen['steps'] = _steps(case, chosen)
    chosen['warmup'] = _warmup(chosen['steps'].value)
    chosen['rate'] = _rate(case, chosen['batch'].value * chosen['accumulate'].value)
    chosen['drop_path'] = _drop_path(case)
    chosen['frozen'] = _frozen(case)
    chosen['val_every'], chosen['patience'] = _validation(case, chosen['steps'].value, times)
    chosen['log_every'] = _log(case)
    return chosen


def _narrow(case: Case) -> Choice:
    if case.full_width is not None:
        return Choice(not case.full_width, 'heads as wide as those in the file to start from')
    if case.machine.gpu:
        return Choice(False, "the paper's heads")
    return Choice(True, 'narrow heads: on a CPU those of the paper take most of the time')


def _side(case: Case) -> Choice:
    """The longer side of an image, in pixels; of label maps' crops both sides."""
    segmentation = case.head in MAP_HEADS
    if case.side:
        return Choice(case.side, 'as asked for by --size')
    if case.machine.gpu:
        if segmentation:
            return Choice(512, 'crops as in the paper')
        return Choice(None, "the paper's size: 800 pixels, at most 1333")
    if segmentation:
        return Choice(192, 'on a CPU the time grows with the number of pixels')
    return Choice(256, 'on a CPU the time grows with the number of pixels; small objects want more')


def _batch(case: Case) -> tuple[Choice, Choice]:
    """Images at once, and how many such batches make a step of the optimizer."""
    if not case.machine.gpu:
        return (
            Choice(4, 'the norms of stem and downsamples need some images to average over'),
            Choice(1, 'more steps teach more than larger ones'),
        )
    # Mask R-CNN RMT-T in float16 takes some 3 GiB an image at 800 × 1333
    each = 3 * DEPTH[case.arch] ** 0.5 * 2**30
    fits = max(1, int(0.8 * case.machine.gpu_bytes / each))
    batch = next(size for size in (8, 4, 2, 1) if size <= fits)
    return (
        Choice(batch, 'as many as the memory of the GPU holds, at most 8'),
        Choice(8 // batch, 'batches a step: 8 images in all'),
    )


def seconds_an_image(case: Case, side: int) -> float:
    """What an image takes in training on the cores of this machine."""
    area = (side / 256) ** 2 * (4 / 3 if case.head in MAP_HEADS else 1)
    wide = 1 if case.full_width is not True else 3
    gain = 1 + 0.75 * (min(case.machine.cores, 8) - 1)  # of cores, which share the memory
    return SECONDS[case.head] * DEPTH[case.arch] * area * wide / gain


def _steps(case: Case, chosen: Recipe) -> Choice:
    """How often the weights change."""
    together = chosen['batch'].value * chosen['accumulate'].value
    epoch = max(1, case.images / together)
    least, epochs = (4000, 36) if case.knows_little else (1500, 12)
    wanted = max(least, round(epochs * epoch))
    why = f'{wanted / epoch:.0f} times through the images'
    if not case.machine.gpu:
        each = seconds_an_image(case, chosen['side'].value) * together
        affordable = max(500, round((1 - FOR_VALIDATION) * case.minutes * 60 / each, -2))
        if affordable < wanted:
            wanted = int(affordable)
            why = (
                f'some {case.minutes:.0f} minutes on {case.machine} ({each:.1f} s a step), '
                f'{wanted / epoch:.0f} times through the images'
            )
    return Choice(int(wanted * chosen['accumulate'].value), why)


def _warmup(steps: int) -> Choice:
    return Choice(max(20, min(500, steps // 20)), 'a twentieth of the steps')


def _rate(case: Case, together: int) -> Choice:
    """The highest learning rate, for ``together`` images a step."""
    root = (together / 4) ** 0.5
    if case.start == 'nothing':
        return Choice(round(6e-4 * root, 7), 'from random weights: high, for there is all to learn')
    if case.start == 'again':
        return Choice(round(3e-4 * root, 7), 'another round: half of what the first began with')
    if case.knows_little:
        return Choice(round(4e-4 * root, 7), 'the weights saw a short training: much is to learn')
    return Choice(round(2e-4 * root, 7), 'low, for what the weights know is not to be lost')


def _drop_path(case: Case) -> Choice:
    if case.machine.gpu and case.images >= 1000:
        return Choice(None, 'as in the paper')
    return Choice(0.0, 'leaves out no block: a short training wants every step of each')


def _frozen(case: Case) -> Choice:
    if case.start in ('backbone', 'detector') and case.schooled:
        return Choice(1, 'stem and first stage stay: edges and colours are the same in all photos')
    return Choice(-1, 'all is trained')


def _validations(case: Case, side: int | None) -> int:
    """How often to validate: ten times, or as often as a share of the time allows."""
    if case.machine.gpu:
        return 10
    each = seconds_an_image(case, side) * TESTING * case.val_images
    return int(max(2, min(10, FOR_VALIDATION * case.minutes * 60 / max(each, 1e-9))))


def _validation(case: Case, steps: int, times: int) -> tuple[Choice, Choice]:
    # from random weights the first validations find nothing, whatever is learnt
    patience = round((0.8 if case.knows_little else 0.5) * times)
    return (
        Choice(max(1, steps // times), f'{times} times in all'),
        Choice(max(2, patience), f'validations without a better one, of {times}'),
    )


def _log(case: Case) -> Choice:
    if case.machine.gpu:
        return Choice(20, 'a line every few seconds')
    return Choice(10, 'and a line at least every ten seconds')


def known_archs() -> tuple[str, ...]:
    return tuple(VARIANTS)
