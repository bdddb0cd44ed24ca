"""The benchmark measures what it says, goes on where it was, and reports from its results."""

import json
from dataclasses import asdict
from pathlib import Path

import mmdet
import pytest
import torch
import yaml
from conftest import load_tool
from support.benchmarking import report
from support.benchmarking.case import operator_kind

from backbone.attention import StageAttention
from backbone.kernels import build


@pytest.fixture
def result():
    """A made-up result of a case."""

    def make(**changes):
        case = dict(
            model='rmt-t', attention='auto', mode='inference', part='all', height=64, width=96,
            batch=1, dtype='float32', device='cpu', threads=1, repeats=2, seconds=1.0,
            operators=False,
        )  # fmt: skip
        measured = dict(
            machine='a machine', used_threads=1, torch='2', seconds_median=0.5, seconds_min=0.4,
            seconds_max=0.7, runs=2, images_per_second=2.0, peak_bytes=10**6, parameters=1,
            multiply_adds=10**9,
        )  # fmt: skip
        return case | measured | changes

    return make


def test_measures_then_goes_on_from_what_is_there(run_tool, tmp_path, capsys):
    arguments = ['--models', 'rmt-t', '--attention', 'naive', 'auto', '--sizes', '256x320']
    arguments += ['--modes', 'inference', '--repeats', '2', '--threads', '1', '--out', tmp_path]
    assert run_tool('benchmark', *arguments) == 0
    assert '[3/3' in capsys.readouterr().out
    results = json.loads((tmp_path / 'benchmark.json').read_text())
    assert results[0]['rate'] > 1e8
    for r in results[1:]:
        assert r['seconds_min'] <= r['seconds_median'] <= r['seconds_max']
        assert r['peak_bytes'] > 0
        assert r['parameters'] == 12_783_776
        assert sum(r['operator_shares'].values()) == pytest.approx(1)
    assert results[1]['multiply_adds'] == results[2]['multiply_adds']
    for name in ('benchmark.md', 'latency.png', 'operators.png'):
        assert (tmp_path / name).stat().st_size > 0
    assert run_tool('benchmark', *arguments) == 0
    assert '/' not in capsys.readouterr().out  # nothing is measured twice


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (['--sizes', '800'], '800'),
        (['--sizes', '16x64'], '16x64'),
        (['--device', 'cuda'], 'cuda'),
        (['--models', 'convnext-t'], 'mmpretrain'),
        (['--repeats', '0'], '--repeats 0'),
        (['--rounds', '-1'], '--rounds -1'),
    ],
)
def test_wrong_arguments_end_in_one_line(run_tool, tmp_path, capsys, monkeypatch, arguments, named):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    benchmark = load_tool('benchmark')
    monkeypatch.setattr(benchmark, 'has_package', lambda name: name != 'mmpretrain')
    assert run_tool('benchmark', *arguments, '--out', tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert named in error
    assert error.count('\n') == 1


def test_case_that_fails_is_recorded_and_the_others_go_on(tmp_path, monkeypatch):
    benchmark = load_tool('benchmark')
    cases = [benchmark.Case('no-such-model', height=64, width=64)]
    results = []
    benchmark.collect(cases, results, tmp_path / 'benchmark.json')
    assert 'no-such-model' in results[0]['error']
    assert 'no-such-model' in report.table(results)


def test_rounds_measure_in_turn_and_take_all_times_together(tmp_path, monkeypatch):
    benchmark = load_tool('benchmark')
    cases = [benchmark.Case('rmt-t', attention=name) for name in ('naive', 'auto')]
    measured = []

    def run(case):
        measured.append(case.attention)
        seconds = float(len(measured))
        peak = dict(peak_bytes=len(measured))
        return asdict(case) | peak | dict(times=[seconds]) | benchmark.timing([seconds], 1)

    monkeypatch.setattr(benchmark, 'run', run)
    results = []
    benchmark.collect(cases, results, tmp_path / 'benchmark.json')
    benchmark.collect(cases, results, tmp_path / 'benchmark.json', rounds=3)
    assert measured == ['naive', 'auto'] * 3
    assert json.loads((tmp_path / 'benchmark.json').read_text()) == results
    naive, auto = results
    assert naive['times'] == [1, 3, 5]
    assert (naive['seconds_median'], naive['seconds_max'], naive['runs']) == (3, 5, 3)
    assert (auto['seconds_median'], auto['peak_bytes']) == (4, 6)


def test_round_that_fails_leaves_what_was_measured(tmp_path, monkeypatch):
    benchmark = load_tool('benchmark')
    case = benchmark.Case('rmt-t', attention='auto')
    good = dict(times=[1.0], peak_bytes=1) | benchmark.timing([1.0], 1)
    outcomes = iter([good, dict(error='no memory')])
    monkeypatch.setattr(benchmark, 'run', lambda case: asdict(case) | next(outcomes))
    results = []
    benchmark.collect([case], results, tmp_path / 'benchmark.json', rounds=2)
    assert results == [asdict(case) | good | dict(rounds=2)]


def test_growth_leaves_out_what_the_formula_has_no_memory_for(monkeypatch):
    benchmark = load_tool('benchmark')
    monkeypatch.setattr('sys.argv', ['benchmark.py', '--growth', '--models', 'rmt-t'])
    cases = [c for c in benchmark.plan(benchmark.parse_args()) if c.part != 'all']
    assert {c.part for c in cases} == {'attention', 'axial'}
    assert max(c.height for c in cases if c.attention == 'naive') == 1024
    assert max(c.height for c in cases if c.attention == 'auto') == 2048


def test_table_compares_with_the_formula_of_the_same_case(result):
    results = [
        dict(model='matrix', rate=1e10),
        result(attention='naive', seconds_median=2.0, peak_bytes=4 * 10**6),
        result(attention='naive', seconds_median=9.0, width=128),
        result(),
    ]
    row = report.table(results).splitlines()[-1]
    assert '4.00×' in row
    assert '| 0.25 |' in row
    assert '20%' in row  # 1 G in 0.5 s of 10 G a second


def test_training_counts_the_products_of_both_passes(result):
    results = [dict(model='matrix', rate=1e10), result(mode='training')]
    assert '60%' in report.table(results).splitlines()[-1]


def test_every_plot_is_made_from_results(result, tmp_path):
    results = [
        result(operator_shares={'linear': 0.4, 'attention': 0.6}),
        result(model='swin-t', attention=''),
        result(part='attention', height=512, width=512),
        result(part='axial', height=512, width=512),
    ]
    report.write(results, tmp_path)
    names = {'latency', 'memory', 'time_per_pixel', 'operators'}
    assert {p.stem for p in tmp_path.glob('*.png')} == names


def test_published_ap_is_known_for_every_variant():
    ap = report.box_ap()
    assert {'rmt-t', 'rmt-s', 'rmt-b', 'rmt-l', 'swin-t', 'resnet-50'} <= set(ap)


@pytest.mark.parametrize(
    ('model', 'folder', 'name'),
    [
        ('resnet-50', 'mask_rcnn', 'mask-rcnn_r50_fpn_1x_coco'),
        ('resnet-101', 'mask_rcnn', 'mask-rcnn_r101_fpn_1x_coco'),
        ('swin-t', 'swin', 'mask-rcnn_swin-t-p4-w7_fpn_1x_coco'),
    ],
)
def test_published_ap_is_what_mmdets_model_zoo_says(model, folder, name):
    metafile = Path(mmdet.__file__).parent / '.mim/configs' / folder / 'metafile.yml'
    (entry,) = (m for m in yaml.safe_load(metafile.read_text())['Models'] if m['Name'] == name)
    (ap,) = (r['Metrics']['box AP'] for r in entry['Results'] if 'box AP' in r['Metrics'])
    assert report.box_ap()[model] == ap


def test_attention_in_columns_shows_among_the_operators_as_that_in_rows_does():
    if reason := build.problem():
        pytest.skip(reason)
    attention = StageAttention('kernel', heads=2, head_dim=16, span=4, axial=True)
    q, k, v = torch.randn(3, 1, 24, 20, 2, 16)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.inference_mode(), torch.profiler.profile(activities=activities) as profile:
        attention.prepare(q.flatten(-2))(q, k, v)
    seen = [e.name for e in profile.events() if operator_kind(e.name) == 'attention']
    assert len(seen) == 2, seen


@pytest.mark.slow
def test_memory_of_the_blocks_is_the_rest_beside_the_frame(run_tool, tmp_path):
    arguments = ['--models', 'rmt-t', '--attention', 'auto', '--sizes', '256x256', '--repeats', '1']
    arguments += ['--modes', 'training', 'training-cp', '--seconds', '0', '--out', tmp_path]
    assert run_tool('benchmark', *arguments) == 0
    results = json.loads((tmp_path / 'benchmark.json').read_text())
    peaks = {(r['mode'], r['part']): r['peak_bytes'] for r in results if 'peak_bytes' in r}
    whole, recomputed = peaks['training', 'all'], peaks['training-cp', 'all']
    assert peaks['training', 'frame'] < recomputed < whole
