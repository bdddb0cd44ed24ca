"""What ``tools/check_gpu.py`` concludes, and its steps where there is no GPU."""

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import types

import pytest
import torch
from conftest import load_tool
from support import gpu_checks
from support.benchmarking.case import RIVALS, VARIANT_LETTERS

from backbone.attention import IMPLEMENTATIONS

CPU = torch.device('cpu')
SOUND = dict(
    versions=dict(gpu='a card', capability='8.0'),
    implementations={'triton': {'float16 32': ''}, 'fused': {'float16 32': ''}},
    exactness={
        'triton float16 32': dict(worst=1e-4, limit=5e-3),
        'flex float16 32': dict(error='RuntimeError: flex is not needed'),
    },
    operators=dict(nms=2),
    training_step=dict(loss=5.0, finite_gradients=True),
)


@pytest.fixture(scope='module')
def tool():
    return load_tool('check_gpu')


def with_change(step, **change):
    found = copy.deepcopy(SOUND)
    found[step] = {**found[step], **change}
    return found


def test_a_sound_card_is_ready(tool):
    assert tool.verdict(SOUND, 'cuda:0') == ''


@pytest.mark.parametrize(
    ('found', 'told'),
    [
        (with_change('versions', error='no driver'), 'versions: no driver'),
        (
            with_change('exactness', error='ended by SIGSEGV'),
            'ended by SIGSEGV; set RMT_TRITON=off',
        ),
        (
            with_change('exactness', **{'triton float16 32': dict(worst=0.1, limit=5e-3)}),
            'triton float16 32: off by 1.0e-01; set RMT_TRITON=off',
        ),
        (
            with_change('exactness', **{'triton float16 32': dict(worst=float('nan'), limit=5e-3)}),
            'off by nan',
        ),
        (
            with_change('exactness', **{'triton float16 32': dict(error='no ptxas')}),
            'triton float16 32: no ptxas',
        ),
        (with_change('operators', error='not compiled with GPU support'), 'compile them for CUDA'),
        (with_change('training_step', error='out of memory'), 'a training step: out of memory'),
        (with_change('training_step', finite_gradients=False), 'gradients that are not finite'),
        (
            with_change('implementations', triton={'float16 32': 'has compute capability 7.5'}),
            'runs, but slowly: triton: has compute capability 7.5',
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_what_is_wrong_is_told_with_what_to_do(tool, found, told):
    assert told in tool.verdict(found, 'cuda:0')


def test_without_a_gpu_it_is_not_ready(tool):
    assert tool.verdict(SOUND, 'cpu').startswith('no GPU is visible to PyTorch')


def test_what_is_wrong_without_a_gpu_is_told_too(tool):
    found = with_change('exactness', **{'triton float16 32': dict(worst=0.1, limit=5e-3)})
    told = tool.verdict(found, 'cpu')
    assert told.startswith('triton float16 32: off by 1.0e-01; ')
    assert 'besides, no GPU is visible' in told


@pytest.mark.parametrize(
    ('code', 'stderr', 'told'),
    [
        (1, 'Traceback\nRuntimeError: CUDA error: illegal address', 'RuntimeError: CUDA error'),
        (-signal.SIGSEGV, '', 'the process ended with -11'),
    ],
)
def test_a_step_that_dies_is_a_finding(tool, code, stderr, told, monkeypatch):
    ended = subprocess.CompletedProcess([], code, '', stderr)
    monkeypatch.setattr(tool.subprocess, 'run', lambda *_, **__: ended)
    assert told in tool.run_step('exactness', 'cuda:0')['error']


def test_a_step_that_does_not_end_is_a_finding(tool, monkeypatch):
    def run(*_, timeout, **__):
        raise subprocess.TimeoutExpired('exactness', timeout)

    monkeypatch.setattr(tool.subprocess, 'run', run)
    assert tool.run_step('exactness', 'cpu') == dict(error='no answer within 900 s')


def test_reasons_are_told_for_every_implementation():
    found = gpu_checks.implementations(torch.device('meta'))
    assert set(found) == set(IMPLEMENTATIONS)
    assert found['triton']['float16 32']
    assert found['fused']['float16 32'] == ''


def test_exactness_is_measured_for_what_can_run(monkeypatch):
    monkeypatch.setattr(
        gpu_checks, 'IMPLEMENTATIONS', {k: IMPLEMENTATIONS[k] for k in ('fused', 'flex', 'naive')}
    )
    found = gpu_checks.exactness(CPU)
    assert list(found) == [
        f'{name} {case}' for name in ('fused', 'naive') for case in ('float32 16', 'float16 32')
    ]
    assert all(0 < each['worst'] <= each['limit'] for each in found.values())


def test_exactness_takes_the_whole_self_check_on_a_gpu_and_little_of_it_elsewhere(monkeypatch):
    asked = []
    for each in IMPLEMENTATIONS.values():
        monkeypatch.setattr(each, 'supports', lambda *_: '')
    monkeypatch.setattr(
        gpu_checks.self_check, 'deviations', lambda *given: asked.append(given) or [('', 0.0)]
    )
    gpu_checks.exactness(torch.device('cuda'))
    pairs = itertools.product(gpu_checks.DTYPES, gpu_checks.HEAD_DIMS)
    by_hand = [(*pair, gpu_checks.self_check.GRID) for pair in pairs]
    assert [given[2:] for given in asked] == len(IMPLEMENTATIONS) * by_hand
    asked.clear()
    gpu_checks.exactness(CPU)  # an interpreted program takes milliseconds, a grid has many
    in_triton = [given for given in asked if given[0] is IMPLEMENTATIONS['triton']]
    assert len(in_triton) == 2
    assert all(H * W < 2 * 64 for *_, (H, W) in in_triton)


def test_times_are_of_each_size_mode_attention_and_rival_on_the_card_asked_for(tool, monkeypatch):
    asked, known = [], {**VARIANT_LETTERS, **RIVALS}

    def collect(cases, results, file):
        asked.append((cases, os.environ['CUDA_VISIBLE_DEVICES']))
        results.append('a result')

    benchmark = types.SimpleNamespace(collect=collect, has_package=lambda name: name == 'mmdet')
    monkeypatch.setitem(sys.modules, 'benchmark', benchmark)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', 'GPU-a, GPU-b')
    assert tool.measure('cuda:1') == ['a result']
    ((cases, card),) = asked
    assert card == 'GPU-b'
    assert all((case.device, case.dtype) == ('cuda', 'float16') for case in cases)
    assert all(case.model in known for case in cases)
    assert {(case.height, case.width, case.mode, case.model, case.attention) for case in cases} == {
        (*size, mode, *model)
        for size in ((800, 1344), (512, 512))
        for mode in ('inference', 'training')
        for model in (
            *(('rmt-t', name) for name in ('triton', 'fused', 'naive')),
            *((name, '') for name in ('swin-t', 'resnet-50')),
        )
    }


@pytest.mark.parametrize(('device', 'name'), [('cuda', '0'), ('cuda:0', '0'), ('cuda:3', '3')])
def test_a_card_is_named_by_its_number_where_all_are_visible(tool, device, name, monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert tool.visible(device) == name


def test_operators_and_a_training_step_run_on_a_cpu():
    assert gpu_checks.operators(CPU) == dict(nms=2)
    step = gpu_checks.training_step(CPU)
    assert step['finite_gradients']
    assert 1 < step['loss'] < 100


@pytest.mark.slow
def test_the_whole_check_without_a_gpu_writes_its_findings(tool, tmp_path, run_tool, capsys):
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    assert run_tool('check_gpu', '--json', tmp_path / 'gpu.json') == 1
    found = json.loads((tmp_path / 'gpu.json').read_text())
    assert set(found) == set(gpu_checks.STEPS)
    assert not [step for step, each in found.items() if 'error' in each]
    assert capsys.readouterr().out.splitlines()[-1].startswith('not ready: no GPU is visible')
