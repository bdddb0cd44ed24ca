"""Costs: by hand for single layers, against the paper for every row."""

import json
import re

import pytest
import torch
from conftest import ROOT, SEG_CONFIG
from get_flops import count, measure
from mmengine.config import Config
from mmengine.registry import MODELS
from support.reporting.paper import read_paper
from torch import nn

ROWS, _ = read_paper()
AS_PUBLISHED = [row for row in ROWS if row.flops]


def config(name: str) -> Config:
    return Config.fromfile(ROOT / name)


def test_the_paper_has_19_costs_and_every_config_a_row():
    assert len(AS_PUBLISHED) == 19
    found = {
        f'{folder}/{path.name}'
        for folder in ('det_configs', 'seg_configs')
        for path in (ROOT / folder).glob('*.py')
    }
    # of classifiers those that are of the paper
    found |= {str(p.relative_to(ROOT)) for p in ROOT.glob('cls_configs/*_300e_in1k.py')}
    assert {row.config for row in ROWS} == found


@pytest.mark.parametrize('row', AS_PUBLISHED, ids=lambda row: row.name)
def test_row_costs_what_the_paper_says(row):
    cost = count(config(row.config), row.shape)['all']
    for ours, paper in ((cost.params / 1e6, row.params), (cost.flops_paper / 1e9, row.flops)):
        assert abs(ours - paper) <= max(0.012 * paper, 0.6), (ours, paper)


@pytest.mark.parametrize(('variant', 'giga'), [('t', 78), ('s', 26), ('b', 48), ('l', 67)])
def test_the_paper_leaves_out_the_attention_products(variant, giga):
    backbone = config(f'det_configs/mask_rcnn_rmt_{variant}_fpn_1x_coco.py').model.backbone
    with torch.device('meta'):
        image = torch.empty(1, 3, 800, 1280)
        model = MODELS.build({**backbone, 'attention': 'naive'}).eval()
    _, cost = measure([model], lambda: model(image))
    assert (cost.flops_total - cost.flops_paper) / 1e9 == pytest.approx(giga, abs=0.5)


@pytest.mark.parametrize(
    ('layer', 'shape', 'flops'),
    [
        # places of the output × filters × weights of a filter
        (nn.Conv2d(6, 8, 3, stride=2, padding=1), (1, 6, 10, 12), 5 * 6 * 8 * 6 * 9),
        (nn.Conv2d(6, 6, 5, padding=2, groups=6), (2, 6, 10, 12), 2 * 120 * 6 * 25),
        # transposed: places of the input
        (nn.ConvTranspose2d(6, 8, 2, stride=2), (1, 6, 5, 5), 25 * 6 * 8 * 4),
        (nn.Linear(6, 8), (3, 4, 6), 12 * 6 * 8),
    ],
    ids=['strided', 'depthwise', 'transposed', 'linear'],
)
def test_a_layer_costs_its_weights_at_every_place(layer, shape, flops):
    _, cost = measure([layer], lambda: layer(torch.zeros(shape)))
    assert cost.flops_paper == flops
    assert cost.flops_total == flops
    assert cost.params == sum(p.numel() for p in layer.parameters())


def test_a_matrix_product_outside_layers_counts_in_the_total_alone():
    a, b = torch.zeros(7, 3, 4), torch.zeros(7, 4, 5)
    _, cost = measure([nn.Identity()], lambda: a @ b)
    assert (cost.flops_paper, cost.flops_total) == (0, 7 * 3 * 4 * 5)


def test_json_has_plain_numbers_and_the_parts_add_up(run_tool, capsys):
    status = run_tool('get_flops', SEG_CONFIG, '--shape', 64, 96, '--json')
    result = json.loads(capsys.readouterr().out)
    assert status == 0
    assert result['shape'] == [64, 96]
    for key in ('params', 'flops_paper', 'flops_total'):
        assert type(result[key]) is int
        assert result[key] == sum(part[key] for part in result['parts'].values())
    assert set(result['parts']) == {'backbone', 'neck', 'heads'}


def test_default_shape_is_the_papers_and_the_table_is_readable(run_tool, capsys):
    assert run_tool('get_flops', SEG_CONFIG) == 0
    out = capsys.readouterr().out
    assert 'at 512 x 2048' in out
    assert re.search(r'backbone +12\.78 M', out)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([SEG_CONFIG, '--shape', 16, 64], '--shape 16 64: images are counted from 32 x 32 up'),
        (['det_configs/nothing.py'], 'det_configs/nothing.py: no such config file'),
        ([SEG_CONFIG, '--cfg-options', 'modle.x=1'], 'did you mean model?'),
    ],
)
def test_a_mistake_ends_in_one_line(run_tool, capsys, arguments, message):
    assert run_tool('get_flops', *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
