"""Fixtures that several test files share: where real data lies, tiny data, and running a tool."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

# without a GPU Triton's kernels are interpreted; what follows may import Triton, which asks once
os.environ.setdefault('TRITON_INTERPRET', str(int(not torch.cuda.is_available())))

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.utils import ManagerMixin
from own_data import OwnData
from tiny_data import write_ade, write_coco

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / 'tools'
sys.path.insert(0, str(TOOLS))

from support import cli  # noqa: E402
from support.config import metafiles_read_once  # noqa: E402

from backbone import attention  # noqa: E402
from backbone.kernels import build  # noqa: E402

# `make test` runs one process a core, which then has to do with one thread
torch.set_num_threads(1 if 'PYTEST_XDIST_WORKER' in os.environ else min(2, os.cpu_count() or 1))

# what a script starts in the background ignores Ctrl-C, and so would the commands that are tested
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DATASETS = Path(os.environ.get('RMT_DATASETS', ROOT.parent / 'shared' / 'datasets'))


DEVICES = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every kind of device there is here: what is equal on one must be equal on all."""
    return torch.device(request.param)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged of weights that are loaded."""
    lines = []
    monkeypatch.setattr(
        'backbone.weights.match.print_log', lambda text, *_, **__: lines.append(text)
    )
    return lines


@pytest.fixture
def no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """No position table is kept from before."""
    monkeypatch.setattr(attention, '_cache', type(attention._cache)())


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """As on a machine where nothing is compiled yet: ``no_kernels(path)`` names the compiler."""

    def compiler(path: str) -> None:
        monkeypatch.setenv('CXX', path)
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
        build.forget()

    yield compiler
    build.forget()


def _real(path: Path) -> Path:
    if not path.is_dir():
        pytest.skip(f'real data is absent: {path} (RMT_DATASETS names another place)')
    return path


@pytest.fixture(scope='session')
def coco_root() -> Path:
    """A part of COCO 2017, laid out as COCO is; skips where there is none."""
    return _real(DATASETS / 'coco')


@pytest.fixture(scope='session')
def ade_root() -> Path:
    """A part of ADE20K, laid out as ADE20K is; skips where there is none."""
    return _real(DATASETS / 'ade' / 'ADEChallengeData2016')


@pytest.fixture(scope='session')
def tiny_coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four noise images in COCO's layout, with COCO's 80 categories; to read, not to change."""
    return write_coco(tmp_path_factory.mktemp('tiny_coco'))


@pytest.fixture(scope='session')
def tiny_ade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in ADE20K's layout."""
    return write_ade(tmp_path_factory.mktemp('tiny_ade'))


DET_CONFIG = 'det_configs/mask_rcnn_rmt_t_fpn_1x_coco.py'
SEG_CONFIG = 'seg_configs/fpn_rmt_t_80k_ade20k.py'


def _loaders(root: Path, batch: int) -> list[str]:
    return [
        f'data_root={root}',
        f'train_dataloader.batch_size={batch}',
        *(f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')),
        *(f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')),
        'default_hooks.logger.interval=1',
        'randomness.seed=0',
    ]


@pytest.fixture(scope='session')
def tiny_det(tiny_coco: Path) -> list[str]:
    """``--cfg-options`` that make DET_CONFIG an affair of seconds: 128 px, few proposals."""
    return [
        *_loaders(tiny_coco, 2),
        'train_dataloader.dataset.pipeline.2.scale=(128,96)',
        'val_dataloader.dataset.pipeline.1.scale=(128,96)',
        'test_dataloader.dataset.pipeline.1.scale=(128,96)',
        'train_cfg.max_epochs=1',
        'model.train_cfg.rpn_proposal.max_per_img=20',
        'model.train_cfg.rcnn.sampler.num=16',
        'model.test_cfg.rpn.max_per_img=10',
        # else an untrained model finds nothing, and there is nothing to evaluate
        'model.test_cfg.rcnn.score_thr=0.0',
        'model.test_cfg.rcnn.max_per_img=5',
    ]


@pytest.fixture(scope='session')
def tiny_seg(tiny_ade: Path) -> list[str]:
    """The same for SEG_CONFIG: two iterations at 64 px."""
    return [
        *_loaders(tiny_ade, 2),
        'train_dataloader.dataset.pipeline.2.scale=(128,96)',
        'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
        'model.data_preprocessor.size=(64,64)',
        'val_dataloader.dataset.pipeline.1.scale=(128,96)',
        'test_dataloader.dataset.pipeline.1.scale=(128,96)',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2',
    ]


@pytest.fixture
def own_coco(tiny_coco: Path, tiny_det: list[str], tmp_path: Path) -> OwnData:
    """A copy of the tiny data set to spoil."""
    return OwnData(Path(shutil.copytree(tiny_coco, tmp_path / 'coco')), DET_CONFIG, tiny_det)


@pytest.fixture
def own_ade(tiny_ade: Path, tiny_seg: list[str], tmp_path: Path) -> OwnData:
    """The same in ADE20K's layout."""
    return OwnData(Path(shutil.copytree(tiny_ade, tmp_path / 'ade')), SEG_CONFIG, tiny_seg)


@pytest.fixture(scope='session')
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, tiny_det: list[str], tiny_seg: list[str]
) -> dict[str, Path]:
    """Checkpoints of untrained models, by config."""
    folder = tmp_path_factory.mktemp('checkpoints')
    made = {}
    for config in (DET_CONFIG, SEG_CONFIG):
        cfg = Config.fromfile(ROOT / config)
        init_default_scope(cfg.default_scope)
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        made[config] = folder / f'{Path(config).stem}.pth'
        torch.save({'meta': {}, 'state_dict': model.state_dict()}, made[config])
    return made


def load_tool(name: str) -> ModuleType:
    """A script of tools/ as a module; plain ``import test`` would be the standard library's."""
    key = f'tools_{name}'
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, TOOLS / f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        spec.loader.exec_module(module)
    return sys.modules[key]


def call_tool(name: str, *arguments: object) -> int:
    """Run ``tools/NAME.py`` in this process with arguments; returns the exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
        patch.delenv('LOCAL_RANK', raising=False)
        try:
            cli.run(load_tool(name).main)
        except SystemExit as end:
            return int(end.code or 0)
        return 0


@pytest.fixture(scope='session', autouse=True)
def _quick_configs() -> Iterator[None]:
    with metafiles_read_once(), pytest.MonkeyPatch.context() as patch:
        # a runner has its config formatted four times, seconds a run; as it stands it is Python too
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, False))
        yield


@pytest.fixture(autouse=True)
def _nothing_of_another_test_by_name() -> None:
    """mmengine keeps visualizers, loggers and message hubs by name for the whole process.

    A run's name is the second it began in: one that begins in the same second as the run of another
    test would draw into, and log to, what that test has closed.
    """
    classes = [ManagerMixin]
    while classes:
        kind = classes.pop()
        if kind is not DefaultScope:  # set once by the imports
            kind._instance_dict.clear()
        classes += kind.__subclasses__()


@pytest.fixture
def run_tool() -> Callable[..., int]:
    """:func:`call_tool`"""
    return call_tool


def run_command(*command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Run a command as a user would, with one thread; output as text."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
