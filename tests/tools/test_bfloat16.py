"""tools/support/bfloat16.py: `--bf16` of test.py and image_demo.py."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import DET_CONFIG, SEG_CONFIG
from mmengine.registry import MODELS, init_default_scope
from support import bfloat16
from support.bfloat16 import reason_against, use_bfloat16
from support.config import read_config
from torch import nn

CONFIGS = [DET_CONFIG, SEG_CONFIG]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Without instructions each small layer waits for threads, on a busy machine for minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize('config', CONFIGS)
def test_backbone_and_neck_run_in_bfloat16_and_give_float32(
    config: str, device: torch.device
) -> None:
    cfg = read_config(config, {})
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).to(device).eval()
    image = torch.randn(1, 3, 64, 64, device=device)
    with torch.no_grad():
        expected = model.extract_feat(image)
    use_bfloat16(model, lambda text: None)
    seen = {}

    def note(name: str) -> Callable:
        return lambda module, inputs, output: seen.update({name: output.dtype})

    for i, stage in enumerate(model.backbone.layers):
        stage.blocks[-1].ffn.fc2.register_forward_hook(note(f'branch {i}'))
        stage.blocks[-1].register_forward_hook(note(f'sum {i}'))
    convolutions = [module for module in model.neck.modules() if isinstance(module, nn.Conv2d)]
    convolutions[0].register_forward_hook(note('neck'))
    with torch.no_grad():
        features = model.extract_feat(image)
    sums = {name: seen.pop(name) for name in list(seen) if name.startswith('sum')}
    assert len(sums) == 4
    assert set(sums.values()) == {torch.float32}
    assert len(seen) == 5
    assert set(seen.values()) == {torch.bfloat16}
    assert not torch.is_autocast_enabled(device.type)
    for feature, exact in zip(features, expected, strict=True):
        assert feature.dtype == torch.float32
        error = (feature - exact).std() / exact.std()
        assert 1e-4 < error < 0.03  # bfloat16 has 8 bits


@pytest.fixture
def extracted(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What passes from bfloat16 to float32 during a test; the processor has no instructions."""
    passed = []
    back = bfloat16._in_float32
    monkeypatch.setattr(
        bfloat16, '_in_float32', lambda features: passed.append(features) or back(features)
    )
    monkeypatch.setattr(bfloat16, '_flags', set)
    return passed


@pytest.mark.parametrize(
    ('config', 'options', 'metric'),
    [
        (DET_CONFIG, 'tiny_det', 'coco/bbox_mAP'),
        pytest.param(SEG_CONFIG, 'tiny_seg', 'mIoU', marks=pytest.mark.slow),
    ],
)
def test_an_evaluation(
    config: str, options: str, metric: str, request: pytest.FixtureRequest, tmp_path: Path,
    checkpoints: dict[str, Path], run_tool: Callable[..., int], extracted: list[object],
) -> None:  # fmt: skip
    options = request.getfixturevalue(options)
    arguments = ('--work-dir', tmp_path, '--cfg-options', *options)
    assert run_tool('test', config, checkpoints[config], '--bf16', *arguments) == 0
    assert metric in json.loads(next(tmp_path.glob('2*/2*.json')).read_text())
    assert extracted
    log = next(tmp_path.glob('2*/2*.log')).read_text()
    if not torch.cuda.is_available():
        assert '--bf16: this processor has no instructions for bfloat16' in log


def test_predictions(
    tmp_path: Path, tiny_coco: Path, tiny_det: list[str], checkpoints: dict[str, Path],
    run_tool: Callable[..., int], extracted: list[object], capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    few = [o for o in tiny_det if o.startswith('model.test_cfg') or 'test_dataloader.dat' in o]
    status = run_tool(
        'image_demo', DET_CONFIG, checkpoints[DET_CONFIG], tiny_coco / 'val2017/000000000001.jpg',
        '--bf16', '--device', 'cpu', '--score-thr', '0', '--out-dir', tmp_path / 'out',
        '--cfg-options', *few,
    )  # fmt: skip
    assert status == 0
    assert extracted
    assert '--bf16: this processor has no instructions' in capfd.readouterr().out
    (found,) = json.loads((tmp_path / 'out/predictions.json').read_text()).values()
    assert len(found) == 5


@pytest.mark.parametrize(
    ('text', 'fast'),
    [
        ('flags\t\t: fpu sse avx512f avx512_bf16 vmx\n', True),
        ('flags\t\t: fpu amx_bf16\n', True),
        ('Features\t: fp asimd bf16 i8mm\n', True),  # ARM
        ('flags\t\t: fpu sse avx2 avx512f\n', False),
        ('model name\t: bf16 amx_bf16\nflags\t\t: fpu\n', False),
        ('', False),
        (None, False),  # another system
    ],
)
def test_a_processor_without_instructions_is_told(
    text: str | None, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bfloat16, 'CPUINFO', tmp_path / 'cpuinfo')
    if text is not None:
        (tmp_path / 'cpuinfo').write_text(text)
    assert (reason_against(torch.device('cpu')) == '') == fast
