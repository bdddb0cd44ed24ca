"""tools/benchmark_onnx.py: each way takes its turn, and is compared with the first."""

import re

import numpy as np
import pytest
import torch
from conftest import call_tool, load_tool
from onnx_files import BRIGHTEST, CORNERS, DETECTOR, SEGMENTOR, write_onnx
from support.cli import UserError
from tiny_models import tiny_config, tiny_model

SIZE = ('--shape', 64, 96)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A config, its checkpoint, and a file that stands for its export."""
    folder = tmp_path_factory.mktemp('made')
    config, weights = folder / 'fpn.py', folder / 'fpn.pth'
    cfg = tiny_config('fpn', 150)
    config.write_text(cfg.pretty_text)
    torch.save(dict(meta={}, state_dict=tiny_model(cfg).state_dict()), weights)
    return config, weights, write_onnx(folder / 'a.onnx', BRIGHTEST, SEGMENTOR.to_text())


def test_every_way_is_told_and_compared_with_the_first(made, capsys):
    ways = ('--ways', 'onnxruntime', 'pytorch')
    assert call_tool('benchmark_onnx', *made, *SIZE, '--rounds', 2, '--threads', 1, *ways) == 0
    told = capsys.readouterr().out.splitlines()
    assert any('a picture of 64 x 96, rounds: 2' in line for line in told)
    number = r'\d+\.\d{3}'
    line = rf'{number} \({number} to {number}\) s, of the processor {number} s'
    assert re.fullmatch(rf'pytorch: {line}', told[-2])
    assert re.fullmatch(
        rf'onnxruntime: {line}; \d+\.\d\d \(\d+\.\d\d\) times as fast as pytorch', told[-1]
    )


def test_a_way_alone_has_its_memory_told(made, capsys):
    arguments = (*made, *SIZE, '--rounds', 1, '--threads', 1, '--ways', 'onnxruntime')
    assert call_tool('benchmark_onnx', *arguments) == 0
    assert re.search(r'memory of the process, at most: \d+\.\d\d GB', capsys.readouterr().out)


def test_ways_take_turns_and_the_first_round_does_not_count():
    tool, turns = load_tool('benchmark_onnx'), []
    ways = {name: lambda _, name=name: turns.append(name) for name in 'ab'}
    seconds = tool.measure(ways, np.zeros((1, 1, 3), np.uint8), rounds=2)
    assert ''.join(turns) == 'ababab'
    assert {name: len(each) for name, each in seconds.items()} == dict(a=2, b=2)


def test_medians_least_and_most():
    told = load_tool('benchmark_onnx').lines(
        dict(a=[(4.0, 4.0), (2.0, 1.5), (9.0, 2.0)], b=[(1.0, 1.0), (1.0, 0.5), (2.0, 1.0)])
    )
    assert told == [
        'a: 4.000 (2.000 to 9.000) s, of the processor 2.000 s',
        'b: 1.000 (1.000 to 2.000) s, of the processor 1.000 s; 4.00 (2.00) times as fast as a',
    ]


def test_a_file_of_any_size_computes_at_the_given_one(tmp_path):
    path = write_onnx(tmp_path / 'a.onnx', CORNERS, DETECTOR.to_text())
    model = load_tool('benchmark_onnx').opened(str(path), 'onnxruntime', (50, 70), 1)
    pixels, *_ = model.prepare(np.zeros((100, 100, 3), np.uint8))
    assert pixels.shape == (1, 3, 50, 70)


@pytest.mark.parametrize(
    ('task', 'line'),
    [('features', 'the backbone alone'), ('detection', 'one size; give --shape 32 64')],
)
def test_a_file_that_cannot_be_timed_is_refused(task, line, tmp_path):
    text = {**DETECTOR.to_text(), 'task': task}
    path = write_onnx(tmp_path / 'a.onnx', CORNERS, text, sides=(32, 64))
    with pytest.raises(UserError, match=line):
        load_tool('benchmark_onnx').opened(str(path), 'onnxruntime', None, 1)


@pytest.mark.parametrize(
    ('arguments', 'line'),
    [
        (['--rounds', 0], '--rounds 0: give 1 or more'),
        (['--shape', 8, 8], '--shape [8, 8]: give 32 pixels or more a side'),
        (['--image', 'no.jpg'], '--image no.jpg: no such file'),
    ],
)
def test_a_mistake_is_one_line(made, arguments, line, capsys):
    assert call_tool('benchmark_onnx', *made, *arguments) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count('\n') == 1
