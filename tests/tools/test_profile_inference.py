"""tools/profile_inference.py: every moment counts once, for the part that runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import DET_CONFIG, SEG_CONFIG, load_tool

RETINANET = 'det_configs/retinanet_rmt_t_fpn_1x_coco.py'
ONE_STAGE = ['load', 'normalise', 'backbone', 'neck', 'box head', 'boxes', 'encode', 'other']
SEGMENTOR = [
    'load', 'normalise', 'backbone', 'neck', 'decode head', 'resize, argmax', 'encode', 'other',
]  # fmt: skip
TWO_STAGE = [
    'load', 'normalise', 'backbone', 'neck', 'RPN head', 'RoI features', 'box head', 'mask head',
    'proposals', 'boxes', 'mask pasting', 'encode', 'other',
]  # fmt: skip


class Watch:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ('config', 'options', 'parts', 'counts'),
    [
        (
            DET_CONFIG,
            ['--detections', '3', '--cfg-options', 'model.test_cfg.rpn.max_per_img=20'],
            TWO_STAGE,
            dict(proposals=20, detections=3),
        ),
        (RETINANET, ['--detections', '3'], ONE_STAGE, dict(detections=3)),
        (SEG_CONFIG, [], SEGMENTOR, {}),
    ],
    ids=['two stages', 'one stage', 'segmentor'],
)
def test_parts_of_each_kind_of_model(
    config: str, options: list[str], parts: list[str], counts: dict[str, int],
    run_tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    file = tmp_path / 'result.json'
    arguments = ['--shape', 64, 90, '--images', 2, '--json', file, *options]
    assert run_tool('profile_inference', config, *arguments) == 0
    result = json.loads(file.read_text())
    assert [part['part'] for part in result['parts']] == parts
    assert all(len(part['seconds']) == 2 and min(part['seconds']) > 0 for part in result['parts'])
    assert result['total'] == pytest.approx(sum(part['median'] for part in result['parts']))
    assert result['input'][0] == 64
    assert {key: result[key] for key in counts} == counts
    assert [path.name for path in tmp_path.iterdir()] == ['result.json']
    out = capsys.readouterr().out
    assert all(part in out for part in parts)
    assert out.count('100.0%') == 1


def test_a_moment_counts_for_the_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    profile, watch = load_tool('profile_inference'), Watch()
    monkeypatch.setattr(profile, 'time', watch)

    class Model:
        def inner(self, seconds: float) -> str:
            watch.now += seconds
            return 'result'

    clock, model = profile.Clock('cpu'), Model()
    clock.watch(model, 'inner', 'inner')
    with clock.part('outer'):
        watch.now += 1
        assert model.inner(10) == 'result'
        watch.now += 100
        model.inner(1000)
    watch.now += 10_000  # outside
    assert clock.lap() == dict(outer=101, inner=1010)
    assert clock.lap() == {}


def test_table_adds_up_medians_by_group() -> None:
    profile = load_tool('profile_inference')
    laps = [
        {'load': 1.0, 'normalise': 1.0, 'backbone': seconds, 'other': 0.0} for seconds in (2, 6, 60)
    ]
    rows = [line.split() for line in profile.table(profile.summary(laps)).splitlines()]
    assert ['input', '2000.0', '25.0%'] in rows
    assert ['load', '1000.0', '12.5%'] in rows
    assert ['backbone', '6000.0', '75.0%'] in rows
    assert rows[-1] == ['total', '8000.0', '100.0%']
    assert len(rows) == 7  # a group that is one part has one row


def test_own_weights_and_image_at_the_configs_size(
    tiny_coco: Path, tiny_det: list[str], checkpoints: dict[str, Path], tmp_path: Path,
    run_tool: Callable[..., int],
) -> None:  # fmt: skip
    image = next((tiny_coco / 'val2017').iterdir())
    arguments = ['--image', image, '--images', 1, '--json', tmp_path / 'result.json']
    options = ['--cfg-options', *tiny_det]
    status = run_tool(
        'profile_inference', DET_CONFIG, checkpoints[DET_CONFIG], *arguments, *options
    )
    assert status == 0
    result = json.loads((tmp_path / 'result.json').read_text())
    assert max(result['input']) == 128  # as tiny_det says
    assert result['detections'] == 5  # likewise


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['det_configs/nothing.py'], 'det_configs/nothing.py: no such config file'),
        ([DET_CONFIG, 'absent.pth'], 'checkpoint absent.pth: no such file'),
        ([DET_CONFIG, '--shape', 16, 64], '--shape 16 64: RMT takes 32 x 32 and up'),
        ([DET_CONFIG, '--images', 0], '--images 0: must be at least 1'),
        ([DET_CONFIG, '--detections', 0], '--detections 0: must be at least 1'),
        ([SEG_CONFIG, '--detections', 5], '--detections: a segmentor has none'),
        ([DET_CONFIG, '--device', 'cuda'], '--device cuda: no CUDA GPU'),
        ([DET_CONFIG, '--json', 'absent/x.json'], '--json absent/x.json: there is no folder'),
        ([DET_CONFIG, '--image', 'absent.jpg'], '--image absent.jpg: no such file'),
        ([DET_CONFIG, '--image', __file__], f'--image {__file__}: no image that can be decoded'),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_line(
    arguments: list[object], message: str, run_tool: Callable[..., int],
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert run_tool('profile_inference', *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
