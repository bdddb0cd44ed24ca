"""tools/attention_map.py: what is drawn is the formula's attention, at the place that is named."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import DET_CONFIG, SEG_CONFIG, load_tool
from oracle import manhattan_attention
from support import cli

from backbone import RMT, ManhattanAttention

tool = load_tool('attention_map')
GRID, HEADS, DIM, SPAN = (5, 7), 3, 24, 4
PLACE = (3, 2)


def formula(q: torch.Tensor, k: torch.Tensor, axial: bool) -> torch.Tensor:
    """How PLACE weighs every place, (n, H, W): values that name their place come back weighed."""
    H, W = GRID
    names = torch.eye(H * W, dtype=torch.float64).view(1, H, W, H * W)
    weighed = manhattan_attention(q, k, names.repeat(1, 1, 1, HEADS), HEADS, SPAN, axial)
    return weighed[(0, *PLACE)].view(HEADS, H, W)


@pytest.mark.parametrize('axial', [False, True], ids=['whole', 'axial'])
@pytest.mark.parametrize('name', ['auto', 'naive', 'flex'])  # the last has no gradients on a CPU
def test_the_map_is_the_formulas_row_and_sums_to_one(axial, name):
    torch.manual_seed(0)
    layer = ManhattanAttention(DIM, HEADS, axial=axial, span=SPAN, attention=name)
    for tensor in layer.parameters():
        torch.nn.init.normal_(tensor, std=0.3)
    x = torch.randn(1, *GRID, DIM)
    with torch.no_grad():
        found, decay = tool.looks_of(layer, layer.attention, x, PLACE)
        q, k = (project(x).double() for project in (layer.q_proj, layer.k_proj))
    expected = formula(q, k * (DIM // HEADS) ** -0.5, axial)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(decay.double(), formula(q * 0, k * 0, axial), rtol=1e-4, atol=1e-6)
    for weights in (found, decay):
        torch.testing.assert_close(weights.sum((1, 2)), torch.ones(HEADS))
    assert float((found - decay).abs().max()) > 0.05  # or the test would not tell them apart


@pytest.mark.parametrize(
    ('place', 'expected'),
    [((0, 0), (0, 0)), ((19.9, 7.9), (0, 1)), ((20, 8), (1, 2)), ((99, 31.9), (3, 4))],
    ids=str,
)
def test_a_place_is_in_the_cell_that_holds_it(place, expected):
    # cells 10 x 8 pixels; the last column is cut off by a size that rounds down
    assert tool.cell(place, np.array([10.0, 8.0]), (4, 5)) == expected


@pytest.mark.parametrize(
    ('config', 'stage', 'head', 'kind'),
    [(DET_CONFIG, 3, '2', 'whole attention'), (SEG_CONFIG, 1, 'all', 'row x column attention')],
)
def test_a_picture_is_written(
    config: str, stage: int, head: str, kind: str, tmp_path: Path, tiny_coco: Path,
    checkpoints: dict[str, Path], run_tool: Callable[..., int],
    capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked, looks_of = [], tool.looks_of
    monkeypatch.setattr(tool, 'looks_of', lambda *a: asked.append(a) or looks_of(*a))
    out, image = tmp_path / 'maps/map.png', tiny_coco / 'val2017/000000000001.jpg'
    height, width = cv2.imread(str(image)).shape[:2]
    status = run_tool(
        'attention_map', config, checkpoints[config], image, out, '--place', width - 1, 0,
        '--stage', stage, '--block', 1, '--head', head, '--cfg-options',
        'test_dataloader.dataset.pipeline.1.scale=(128,96)',
    )  # fmt: skip
    assert status == 0
    assert kind in capfd.readouterr().out
    assert cv2.imread(str(out)) is not None
    assert list(out.parent.iterdir()) == [out]
    ((_, attention, x, place),) = asked
    assert attention.axial == (stage == 1)
    # the place is the upper right corner: the last column that the image reaches
    stride = 2 ** (stage + 1)
    scale = min(128 / max(height, width), 96 / min(height, width))
    assert place == (0, int((width - 1) * scale) // stride)
    assert place[1] < x.shape[2]


@pytest.mark.parametrize(
    ('stage', 'block', 'head', 'told'),
    [
        (3, None, '1', '--stage 3: choose from 1 to 2'),
        (0, None, '1', '--stage 0: choose from 1 to 2'),
        (1, 3, '1', '--block 3: choose from 1 to 2'),
        (1, 0, '1', '--block 0: choose from 1 to 2'),
        (1, 1, '5', '--head 5: choose from 1 to 4'),
        (1, 1, '0', '--head 0: choose from 1 to 4'),
        (1, 1, '-1', '--head -1: choose from 1 to 4, or all'),
    ],
    ids=str,
)
def test_what_the_backbone_has_not_is_told(stage, block, head, told):
    with torch.device('meta'):
        model = RMT('tiny', out_indices=(1,))  # of two stages

    def choose():
        _, attention = tool.find_block(model, 'config.py', stage, block)
        tool.chosen_heads(head, attention.heads)

    with pytest.raises(cli.UserError, match=told):
        choose()


def test_the_last_block_is_taken_where_none_is_named():
    with torch.device('meta'):
        model = RMT('tiny', out_indices=(2,))
    assert tool.find_block(model, 'config.py', 3, None)[0] is model.layers[2].blocks[7].retention
    assert tool.chosen_heads('all', 4) == [0, 1, 2, 3]


def test_another_backbone_is_told():
    with pytest.raises(cli.UserError, match=r'config\.py: its backbone is Linear, not RMT'):
        tool.find_block(torch.nn.Linear(1, 1), 'config.py', 1, None)


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        ({'--place': ('1000', '0')}, '--place 1000 0: outside; '),
        ({'--place': ('0', '-1')}, '--place 0 -1: outside; '),
        ({'--place': ('nan', '1')}, '--place nan 1: outside; '),
        ({'image': ('absent.jpg',)}, 'image absent.jpg: no such file'),
        ({'image': (__file__,)}, 'no image that can be decoded'),
        ({'checkpoint': ('absent.pth',)}, 'checkpoint absent.pth: no such file'),
        ({'out': ('map.jpg',)}, 'map.jpg: a .png is written; name one'),
        ({'out': (f'{__file__}/map.png',)}, 'is no folder'),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_before_anything_is_built(
    change: dict, told: str, tmp_path: Path, tiny_coco: Path, checkpoints: dict[str, Path],
    run_tool: Callable[..., int], capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(tool, 'build', None)
    assert_refused(change, told, tmp_path, tiny_coco, checkpoints, run_tool, capfd, monkeypatch)


def test_a_checkpoint_of_another_model_is_refused(
    tmp_path: Path, tiny_coco: Path, checkpoints: dict[str, Path], run_tool: Callable[..., int],
    capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    change = {'checkpoint': (checkpoints[DET_CONFIG],)}
    told = str(checkpoints[DET_CONFIG])
    assert_refused(change, told, tmp_path, tiny_coco, checkpoints, run_tool, capfd, monkeypatch)


def assert_refused(
    change, told, tmp_path, tiny_coco, checkpoints, run_tool, capfd, monkeypatch
) -> None:
    """A run of SEG_CONFIG, some words changed, ends in that line and leaves nothing."""
    monkeypatch.chdir(tmp_path)
    given = {
        'config': (SEG_CONFIG,),
        'checkpoint': (checkpoints[SEG_CONFIG],),
        'image': (tiny_coco / 'val2017/000000000001.jpg',),
        'out': ('map.png',),
        '--place': ('3', '4'),
        '--stage': ('1',),
    } | change
    words = []
    for name, values in given.items():
        words += [name, *values] if name.startswith('-') else values
    assert run_tool('attention_map', *words) == 2
    errors = [x for x in capfd.readouterr().err.splitlines() if x.startswith('error: ')]
    assert len(errors) == 1
    assert told in errors[0]
    assert list(tmp_path.iterdir()) == []
