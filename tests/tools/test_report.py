"""The generated tables: up to date, honest about runs, and in OpenMMLab's format."""

import json
import re

import pytest
import yaml
from conftest import ROOT, load_tool
from mmengine.config import Config
from support.cli import UserError
from support.reporting import results
from support.reporting.markdown import SHORT
from support.reporting.paper import read_paper
from support.reporting.plots import PLOTS
from support.reporting.results import Run, better, config_hash, find_runs, status

report = load_tool('report')
ROWS, PEERS = read_paper()
BY_NAME = {row.name: row for row in ROWS}
TINY = BY_NAME['mask_rcnn_rmt_t_fpn_1x_coco']
FPN = BY_NAME['fpn_rmt_t_80k_ade20k']


def leave_a_run(folder, row, values, images, **changes):
    """What tools/test.py leaves behind, in FOLDER/CONFIG/TIME."""
    time = '20260102_030405'
    run = folder / row.name / time
    (run / 'vis_data').mkdir(parents=True)
    cfg = Config.fromfile(ROOT / row.config)
    cfg.load_from = 'some/where/weights.pth'
    cfg.merge_from_dict({'data_root': '/other', 'test_dataloader.num_workers': 0, **changes})
    cfg.dump(run / 'vis_data' / 'config.py')
    (run / f'{time}.json').write_text(json.dumps(values))
    (run / f'{time}.log').write_text(
        f'    GPU number: 1\n mmengine - INFO - Epoch(test) [50/{images}]    eta\n'
        f' mmengine - INFO - Epoch(test) [{images}/{images}]    coco/bbox_mAP: 0.4\n'
    )


def the_run(folder, row):
    found = list(find_runs(folder, ROWS))
    assert [r for r, _ in found] == [row]
    return found[0][1]


def coco(box):
    return {'coco/bbox_mAP': box, 'coco/segm_mAP': 0.426, 'data_time': 0.1}


def test_a_run_over_everything_reproduces_the_paper(tmp_path):
    leave_a_run(tmp_path, TINY, coco(0.469), 5000)
    run = the_run(tmp_path, TINY)
    assert run == Run(
        {'bbox_mAP': 46.9, 'segm_mAP': 42.6}, 5000, [], 'weights.pth', '2026-01-02 03:04:05'
    )
    assert status(TINY, vars(run)) == 'reproduced'


def test_a_run_well_below_the_paper_does_not_reproduce_it(tmp_path):
    leave_a_run(tmp_path, TINY, coco(0.467), 5000)
    assert status(TINY, vars(the_run(tmp_path, TINY))) == 'published'


def test_fewer_images_are_a_subset(tmp_path):
    leave_a_run(tmp_path, TINY, coco(0.5), 120)
    assert status(TINY, vars(the_run(tmp_path, TINY))) == 'measured on a subset'


def test_other_test_settings_are_named_and_do_not_reproduce(tmp_path):
    changes = {'test_dataloader.dataset.pipeline.1.scale': (512, 384)}
    leave_a_run(tmp_path, TINY, coco(0.5), 5000, **changes)
    run = the_run(tmp_path, TINY)
    assert {key.rsplit('.', 1)[0] for key in run.changed} == set(changes)
    assert status(TINY, vars(run)) == 'measured on a subset'


@pytest.mark.parametrize('dump', ['PredictionsFile', 'DumpDetResults'])
def test_predictions_that_were_written_change_no_result(dump, tmp_path):
    evaluator = Config.fromfile(ROOT / TINY.config).test_evaluator
    leave_a_run(tmp_path, TINY, coco(0.469), 5000, test_evaluator=[evaluator, dict(type=dump)])
    assert the_run(tmp_path, TINY).changed == []


def test_segmentation_metrics_are_in_percent_already(tmp_path):
    leave_a_run(tmp_path, FPN, {'mIoU': 46.42, 'aAcc': 80.0}, 2000)
    assert the_run(tmp_path, FPN).metrics == {'mIoU': 46.42}


def test_accuracy_is_in_percent_and_of_batches(tmp_path):
    row = BY_NAME['rmt_t_300e_in1k']
    leave_a_run(tmp_path, row, {'accuracy/top1': 82.31, 'accuracy/top5': 96.0}, 782)
    run = the_run(tmp_path, row)
    assert (run.metrics, run.images) == ({'accuracy/top1': 82.31}, 50000)  # the last is no whole 64
    assert status(row, vars(run)) == 'reproduced'


def test_without_a_run_a_row_is_published_or_not_run():
    assert status(TINY, None) == 'published'
    assert status(BY_NAME['upernet_rmt_t_160k_ade20k'], None) == 'not run'


def test_a_whole_run_wins_over_a_later_part_of_it():
    whole = vars(Run({}, 5000, [], '', '2026-01-01 00:00:00'))
    part = vars(Run({}, 120, [], '', '2026-02-01 00:00:00'))
    other = vars(Run({}, 5000, ['model.x'], '', '2026-02-01 00:00:00'))
    assert max([part, whole, other], key=lambda run: better(run, TINY)) is whole


def test_a_file_that_no_run_wrote_is_left_alone_and_a_broken_one_named(tmp_path):
    (tmp_path / 'notes.json').write_text('{}')
    assert list(find_runs(tmp_path, ROWS)) == []
    leave_a_run(tmp_path, TINY, {'loss': 1.0}, 120)
    with pytest.raises(UserError, match='has no bbox_mAP'):
        list(find_runs(tmp_path, ROWS))


def test_hash_tells_another_model_but_not_another_place():
    cfg = Config.fromfile(ROOT / TINY.config)
    before = config_hash(cfg)
    cfg.test_dataloader.dataset.data_root = '/elsewhere'
    cfg.optim_wrapper.optimizer.lr = 1.0
    assert config_hash(cfg) == before
    cfg.model.backbone.arch = 'small'
    assert config_hash(cfg) != before


def test_the_tables_in_the_folders_are_what_the_results_give():
    texts = report.render(ROWS, results.read_results())
    for path, make in texts.items():
        if path.endswith('.png'):  # the bytes are matplotlib's
            assert (ROOT / path).is_file(), f'{path}: run tools/report.py'
        elif not path.startswith('work_dirs/'):
            assert (ROOT / path).read_text() == make(), f'{path}: run tools/report.py'


@pytest.mark.parametrize('folder', report.FOLDERS)
def test_every_link_and_picture_of_a_folders_tables_leads_somewhere(folder):
    links = re.findall(r'\]\((?!https:)([^)#:]+)', (ROOT / folder / 'README.md').read_text())
    assert [link for link in links if not (ROOT / folder / link).is_file()] == []
    plotted = [row for row in ROWS if row.table.folder == folder and row.table.name in PLOTS]
    assert any(link.endswith('.png') for link in links) == bool(plotted)


def test_the_numbers_in_the_text_are_the_counted_ones():
    text = (ROOT / 'docs' / 'costs.md').read_text()
    for family, name in (('rmt', ''), ('ravlt', 'RAVLT-'), ('mavit', 'MAViT-')):
        for letter in 'tsbl':
            row = BY_NAME[f'mask_rcnn_{family}_{letter}_fpn_1x_coco']
            cost = results.read_results()[row.name]
            paper, total = cost['flops_paper'] / 1e9, cost['flops_total'] / 1e9
            numbers = [row.flops or '–', *(f'{n:.1f}' for n in (paper, total - paper, total))]
            assert f'| {name}{row.variant} | {" | ".join(map(str, numbers))} |' in text


def test_the_guide_has_the_commands_of_every_row_and_its_expected_number():
    text = (ROOT / 'docs' / 'reproduction.md').read_text()
    for row in ROWS:
        train = f'tools/dist_train.sh {row.config} $GPUS --cfg-options data_root='
        assert text.count(train) == 1
        assert f'tools/dist_test.sh {row.config} work_dirs/{row.name}/' in text
        expected = [str(row.paper[m]) for m in SHORT if m in row.paper]
        assert f'| `{row.name}` | {" / ".join(expected) or "no published result"} |' in text


def test_html_page_needs_nothing_else_and_shows_every_row_and_peer():
    page = report.render(ROWS, results.read_results())['work_dirs/report.html']()
    for name in (*BY_NAME, *(peer for table in PEERS.values() for peer in table)):
        assert name in page
    assert page.count('<svg') == 4
    for outside in ('src=', 'href="http', '@import', '<script'):
        assert outside not in page


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A project with nothing generated but the results, in which tools/report.py works."""
    for folder in ('docs', *report.FOLDERS):
        (tmp_path / folder).mkdir()
    target = tmp_path / 'docs' / 'results.json'
    target.write_text(results.RESULTS.read_text())
    (tmp_path / 'README.md').write_text('<!-- variants -->\n<!-- /variants -->\n')
    (tmp_path / 'docs' / 'reproduction.md').write_text('<!-- rows -->\n<!-- /rows -->\n')
    monkeypatch.setattr(report, 'ROOT', tmp_path)
    monkeypatch.setattr(report, 'RESULTS', target)
    monkeypatch.setattr(results, 'RESULTS', target)
    return tmp_path


def test_report_takes_up_a_run_and_keeps_it_when_the_run_is_gone(copy, run_tool):
    leave_a_run(copy / 'runs', TINY, coco(0.475), 5000)
    assert run_tool('report', '--runs', copy / 'runs') == 0
    readme = (copy / 'det_configs' / 'README.md').read_text()
    assert '| 47.1 | 47.5 (+0.4) | 42.6 | 42.6 (+0.0) | reproduced |' in readme
    assert 'weights.pth, 5000 images' in readme
    models = yaml.safe_load((copy / 'det_configs' / 'metafile.yml').read_text())['Models']
    (entry,) = (model for model in models if model['Name'] == TINY.name)
    assert entry['Metadata']['Results from'] == 'this project'
    assert entry['Results'][0]['Metrics'] == {'box AP': 47.5}
    assert '+0.4' in (copy / 'work_dirs' / 'report.html').read_text()
    for table in ('mask_rcnn_1x', 'upernet_160k'):
        assert (copy / 'docs' / 'img' / f'paper-{table}.png').read_bytes().startswith(b'\x89PNG')
    assert run_tool('report') == 0
    assert (copy / 'det_configs' / 'README.md').read_text() == readme


def test_report_counts_again_what_changed(copy, run_tool, capsys):
    content = json.loads((copy / 'docs' / 'results.json').read_text())
    content[FPN.name].update(hash='of another config', params=1)
    (copy / 'docs' / 'results.json').write_text(json.dumps(content))
    assert run_tool('report') == 0
    assert capsys.readouterr().out.count('counting') == 1
    assert json.loads((copy / 'docs' / 'results.json').read_text())[FPN.name]['params'] == 17034038


def test_a_folder_of_runs_that_is_not_there_ends_in_one_line(copy, run_tool, capsys):
    assert run_tool('report', '--runs', 'nowhere') == 2
    assert capsys.readouterr().err == 'error: --runs nowhere: no such directory\n'
    assert not (copy / 'model-index.yml').exists()


def test_metafiles_name_configs_that_exist_with_what_they_cost():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    models = []
    for path in index['Import']:
        content = yaml.safe_load((ROOT / path).read_text())
        collections = {c['Name'] for c in content['Collections']}
        for collection in content['Collections']:
            assert (ROOT / collection['README']).is_file()
        assert {m['In Collection'] for m in content['Models']} == collections
        models += content['Models']
    assert {m['Config'] for m in models} == {row.config for row in ROWS}
    for model in models:
        assert (ROOT / model['Config']).is_file()
        assert model['Metadata']['Parameters'] > 1e7
        for result in model.get('Results', []):
            assert {'Task', 'Dataset', 'Metrics'} <= set(result)
