"""Costs: by hand for single layers, against what is published for every row."""

import json
import re
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from conftest import ROOT, SEG_CONFIG
from get_flops import Cost, count, measure
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from support.reporting.paper import read_paper
from torch import nn

ROWS, _ = read_paper()
AS_PUBLISHED = [row for row in ROWS if row.flops]


def config(name: str) -> Config:
    return Config.fromfile(ROOT / name)


def test_19_costs_of_rmt_and_21_of_ravlt_are_published_and_every_config_has_a_row():
    assert Counter(row.family.name for row in AS_PUBLISHED) == {'RMT': 19, 'RAVLT': 21}
    found = {
        f'{folder}/{path.name}'
        for folder in ('det_configs', 'seg_configs')
        for path in (ROOT / folder).glob('*.py')
    }
    # of classifiers those that are of the paper
    found |= {str(p.relative_to(ROOT)) for p in ROOT.glob('cls_configs/*_300e_in1k.py')}
    assert {row.config for row in ROWS} == found


@pytest.mark.parametrize('row', AS_PUBLISHED, ids=lambda row: row.name)
def test_row_costs_what_is_published(row):
    cost = count(config(row.config), row.shape)['all']
    for ours, paper in ((cost.params / 1e6, row.params), (cost.flops_paper / 1e9, row.flops)):
        assert abs(ours - paper) <= max(0.012 * paper, 0.6), (ours, paper)


@pytest.mark.parametrize('row', [r for r in ROWS if r.family.name == 'MAViT'], ids=lambda r: r.name)
def test_row_of_mavit_is_ravlts_with_another_backbone_of_the_same_cost(row):
    """Nothing is published of it."""
    ravlt = config(row.config.replace('_mavit_', '_ravlt_')).model
    ravlt.backbone.type = 'MAViT'
    assert config(row.config).model == ravlt
    assert (row.params, row.flops) == (None, None)


@pytest.mark.parametrize(
    ('family', 'variant', 'giga'),
    [
        *[('rmt', 't', 78.2), ('rmt', 's', 25.9), ('rmt', 'b', 48.5), ('rmt', 'l', 66.6)],
        *[('ravlt', 't', 52.8), ('ravlt', 's', 98.1), ('ravlt', 'b', 161.9), ('ravlt', 'l', 291.5)],
        *[('mavit', 't', 52.8), ('mavit', 's', 98.1), ('mavit', 'b', 161.9), ('mavit', 'l', 291.5)],
    ],
)
def test_what_is_published_leaves_out_the_attention_products(family, variant, giga):
    cost = on_coco(family, variant)
    assert (cost.flops_total - cost.flops_paper) / 1e9 == pytest.approx(giga, abs=0.06)


@pytest.mark.parametrize('variant', 'tsbl')
def test_backbones_of_ravlt_and_mavit_cost_the_same_as_published_costs_are_counted(variant):
    ravlt, mavit = (on_coco(family, variant) for family in ('ravlt', 'mavit'))
    assert (mavit.params, mavit.flops_paper) == (ravlt.params, ravlt.flops_paper)
    assert 0 < ravlt.flops_total - mavit.flops_total < 0.06e9


def on_coco(family: str, variant: str) -> Cost:
    """Of the backbone under Mask R-CNN."""
    row = config(f'det_configs/mask_rcnn_{family}_{variant}_fpn_1x_coco.py')
    return count(row, (800, 1280))['backbone']


@pytest.mark.parametrize(('name', 'linear'), [('RAVLT', 2 * (1 + 64)), ('MAViT', 1 + 2 * 64)])
def test_linear_and_softmax_attention_count_as_their_formulas(name, linear):
    """``linear`` products a place and channel, with 64 channels a head; 2 L of softmax."""
    with torch.device('meta'):
        model = MODELS.build(dict(type=name, arch='tiny', attention='naive')).eval()
        image = torch.empty(1, 3, 64, 96)
    _, cost = measure([model], lambda: model(image))
    expected = seen = 0
    for stage, (channels, depth) in enumerate(zip((64, 128, 256, 512), (2, 2, 6, 2), strict=True)):
        places = (16 >> stage) * (24 >> stage)
        products = linear if stage < 2 else 2 * places
        expected += depth * places * channels * products
        # the formula takes one of them element by element
        seen += depth * places * channels * (products - (stage < 2))
    assert cost.flops_total - cost.flops_paper == seen == pytest.approx(expected, rel=0.01)


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


def test_attention_of_transformer_heads_costs_its_four_linear_layers_and_its_products():
    layer = nn.MultiheadAttention(8, 2)
    query, key = torch.zeros(5, 1, 8), torch.zeros(7, 1, 8)
    linear, products = (2 * 5 + 2 * 7) * 8 * 8, 2 * 5 * 7 * 8
    for forward in (lambda: layer(query, key, key), lambda: layer(query=query, key=key, value=key)):
        _, cost = measure([layer], forward)
        assert (cost.flops_paper, cost.flops_total) == (linear, linear + products)


@pytest.mark.parametrize(
    ('path', 'shape'),
    [
        ('det_configs/dino_rmt_t_4scale_12e_coco.py', (256, 320)),
        ('det_configs/mask2former_rmt_t_50e_coco.py', (64, 96)),
        ('seg_configs/mask2former_rmt_t_160k_ade20k.py', (64, 96)),
    ],
)
def test_heads_that_ask_for_numbers_cost_what_they_do_with_numbers(path, shape, monkeypatch):
    cfg = config(path)
    decoder = cfg.model.get('panoptic_head') or cfg.model.get('decode_head') or cfg.model
    decoder.get('transformer_decoder', decoder.get('decoder')).num_layers = 1
    (decoder.get('pixel_decoder') or decoder).encoder.num_layers = 1
    costs = count(cfg, shape)
    monkeypatch.setattr('get_flops.SizesWithNumbers', nullcontext)
    monkeypatch.setattr('get_flops.DEVICE', 'cpu')
    assert count(cfg, shape) == costs


def test_fewer_places_than_queries_end_in_one_line(run_tool, capsys):
    arguments = ['det_configs/dino_rmt_t_4scale_12e_coco.py', '--shape', 64, 96]
    assert run_tool('get_flops', *arguments) == 2
    assert 'has 128 places, of which the model takes 900' in capsys.readouterr().err


def test_json_has_plain_numbers_and_the_parts_add_up(run_tool, capsys):
    init_default_scope('mmseg')  # of another test's scope mmengine would tell in between
    capsys.readouterr()
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
