"""Recognition by names and shapes, and that those are the released ones."""

from dataclasses import replace

import pytest
import torch
from mmengine.registry import MODELS
from released_files import MINI, classifier, names_digest, with_tables

from backbone import RMT, VARIANTS
from backbone.weights import families
from backbone.weights.families import FAMILIES, RMT_FILES, derived_tables
from backbone.weights.layout import recognise, split_backbone

# SHA-256 of the sorted lines "name [shape]" of the released state dicts:
# (downstream backbone, ImageNet's top, token labelling's top)
OFFICIAL = {
    'tiny': (
        '73f1b90880c24a8cc801e317854b28823c9fce54b3652c864025d36794d73c74',
        '8a2cabb77fd396e05315d7ce746352597d2cb7f2538695d93ff3bbfbfadd7254',
        '7500ef7269464263225d045a5f59c8814ed59e6e8c978b72496c2f557aa3f08e',
    ),
    'small': (
        '31fd76dce58a85e02152901dd92d6964d40680d2d2beeedbcd5f6fd2b4b47a56',
        '8a2cabb77fd396e05315d7ce746352597d2cb7f2538695d93ff3bbfbfadd7254',
        '7500ef7269464263225d045a5f59c8814ed59e6e8c978b72496c2f557aa3f08e',
    ),
    'base': (
        'd228d2a6eddfef19ec1a8c0b552393a528a7db5e1576b18a115fd08be0f2e726',
        '8a2cabb77fd396e05315d7ce746352597d2cb7f2538695d93ff3bbfbfadd7254',
        '7500ef7269464263225d045a5f59c8814ed59e6e8c978b72496c2f557aa3f08e',
    ),
    'large': (
        'f56c9802df49336305dff28800b12fd0780aa06a91bd7414059e99996cc4cfa4',
        'e319b6e55d5908406adc626b762c13171e3a62c11e0023744c4ae76aa0c56f4a',
        '1d8cbbf79c033cf0c79f5717774ddcc0ee4c32722d1cbd29eb9d4fe30fca4b97',
    ),
}


@pytest.fixture(
    scope='module', params=[arch for arch, variant in VARIANTS.items() if variant.released_name]
)
def model(request):
    return RMT(request.param)


def test_names_and_shapes_are_the_released_ones(model):
    arch = next(name for name, variant in VARIANTS.items() if variant is model.variant)
    found = (
        names_digest(with_tables(model.state_dict(), model)),
        names_digest(classifier(model.variant.channels[-1], token_label=False)),
        names_digest(classifier(model.variant.channels[-1], token_label=True)),
    )
    assert found == OFFICIAL[arch]


def test_every_variant_and_kind_is_recognised(model):
    letter = model.variant.letter
    weights = dict(model.state_dict())
    top = classifier(model.variant.channels[-1], token_label=True)
    plain = classifier(model.variant.channels[-1], token_label=False)
    assert str(recognise(weights)) == f'RMT-{letter} backbone'
    assert recognise({**weights, **top}).kind == 'token_label'
    assert recognise({**weights, **plain}).kind == 'imagenet'
    assert recognise({**weights, **plain}).num_classes == 1000
    in_detector = {f'backbone.{name}': tensor for name, tensor in weights.items()}
    assert recognise(in_detector).size == f'RMT-{letter}'
    assert recognise(in_detector).kind == 'other'


def test_another_size_is_described_by_its_channels_and_depths():
    description = recognise(RMT(MINI).state_dict())
    assert description.arch == ''
    assert 'channels 16, 24, 32, 48; depths [1, 1, 2, 1]' in str(description)


def test_what_is_no_rmt_is_said_to_be_none():
    words = 'weights of something else than RMT, RAVLT or MAViT'
    assert str(recognise({'fc.weight': torch.zeros(3, 3)})) == words
    assert recognise({}).kind == ''


def test_tables_follow_the_formula():
    tables = derived_tables(VARIANTS['tiny'])
    angle, decay = tables['layers.0.Relpos.angle'], tables['layers.0.Relpos.decay']
    assert angle.tolist() == pytest.approx(
        [10000 ** -(j // 2 / 7) for j in range(16)], rel=1e-5
    )  # 8 pairs
    expected = [torch.log(torch.tensor(1 - 2.0 ** (-2 - 4 * m / 4))).item() for m in range(4)]
    assert decay.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('family', FAMILIES, ids=lambda family: family.name)
def test_a_family_tells_its_names_apart(family):
    for arch, variant in family.sizes.items():
        with torch.device('meta'):
            model = MODELS.build(dict(type=family.name, arch=arch))
        names, tables = list(model.state_dict()), list(family.tables(variant))
        assert all(family.is_derived(n) and family.is_derived(f'backbone.{n}') for n in tables)
        assert all(model.is_surplus(n) for n in tables)
        assert not any(family.is_derived(n) or family.is_top(n) for n in names)
        norms = [n for n in names if family.is_output_norm(n)]
        assert norms == list(model.extra_norms.state_dict(prefix='extra_norms.'))
        counters = [n for n in names if family.is_optional(n)]
        assert counters == [n for n in names if n.endswith('.num_batches_tracked')]


def test_another_family_is_another_row_of_the_table(monkeypatch):
    other = replace(RMT_FILES, name='Other', mark='.mixer.', tops=('top.',))
    monkeypatch.setattr(families, 'FAMILIES', (*FAMILIES, other))
    ours = RMT('tiny').state_dict()
    theirs = {name.replace('.retention.', '.mixer.'): tensor for name, tensor in ours.items()}
    assert str(recognise(ours)) == 'RMT-T backbone'
    assert str(recognise(theirs)) == 'Other-T backbone'
    top = {'top.weight': torch.zeros(2)}
    assert split_backbone({**theirs, **top})[1] == list(top)
    assert split_backbone({**ours, **top})[1] == []


# --- each line of the tables tells something apart ------------------------------------------------

TINY = {
    f'layers.{i}.blocks.{j}.{name}': shape
    for i, depth in enumerate(VARIANTS['tiny'].depths)
    for j in range(depth)
    for name, shape in {
        'ffn.fc1.weight': (
            VARIANTS['tiny'].channels[i] * VARIANTS['tiny'].ffn_ratio[i],
            VARIANTS['tiny'].channels[i],
        ),
        'retention.q_proj.weight': (1,),
    }.items()
} | {'patch_embed.proj.0.weight': (1,)}


def described(shapes: dict, prefix: str = '', **more: tuple):
    names = {**{f'{prefix}{n}': s for n, s in shapes.items()}, **more}
    return recognise({n: torch.empty(s, device='meta') for n, s in names.items()})


@pytest.mark.parametrize(('heads', 'kind', 'classes', 'class_layers'), [
    ({'roi_head.bbox_head.0.fc_cls.weight': (4, 1), 'roi_head.bbox_head.2.fc_reg.bias': (4,),
      'roi_head.mask_head.1.conv_logits.weight': (3, 1)}, 'cascade_mask_rcnn', 3, 3),
    ({'roi_head.bbox_head.fc_cls.weight': (4, 1), 'roi_head.bbox_head.fc_reg.weight': (12, 1),
      'roi_head.mask_head.conv_logits.bias': (3,), 'roi_head.mask_head.convs.0.conv.bias': (1,),
      'roi_head.bbox_head.shared_fcs.0.weight': (1,)}, 'mask_rcnn', 3, 3),
    ({'bbox_head.retina_cls.weight': (27, 1), 'bbox_head.retina_reg.weight': (36, 1)},
     'retinanet', 3, 1),
    ({'bbox_head.retina_cls.weight': (9, 1), 'bbox_head.retina_reg.weight': (12, 1)},
     'retinanet', 3, 1),
    ({'bbox_head.retina_cls.weight': (27, 1), 'bbox_head.cls_convs.0.conv.weight': (1,)},
     'retinanet', 3, 1),
    ({'decode_head.psp_modules.0.1.conv.weight': (1,), 'decode_head.conv_seg.weight': (3, 1),
      'auxiliary_head.conv_seg.weight': (3, 1)}, 'upernet', 3, 2),
    ({'decode_head.scale_heads.0.0.conv.weight': (1,), 'decode_head.conv_seg.bias': (3,),
      'decode_head.conv_seg.weight': (3, 1)}, 'fpn', 3, 2),
    ({'bbox_head.atss_cls.weight': (3, 1), 'bbox_head.atss_reg.weight': (4, 1)}, 'atss', 3, 1),
    ({'bbox_head.rtm_cls.0.weight': (3, 1), 'bbox_head.rtm_cls.2.bias': (3,),
      'bbox_head.rtm_reg.0.weight': (4, 1)}, 'rtmdet', 3, 2),
    ({'bbox_head.cls_branches.0.weight': (3, 1), 'bbox_head.cls_branches.6.bias': (3,),
      'bbox_head.reg_branches.0.0.weight': (1, 1), 'query_embedding.weight': (9, 1),
      'dn_query_generator.label_embedding.weight': (3, 1)}, 'dino', 3, 3),
    ({'bbox_head.cls_branches.0.weight': (3, 1)}, 'other', 3, 1),  # another DETR
    ({'panoptic_head.cls_embed.weight': (4, 1), 'panoptic_head.cls_embed.bias': (4,),
      'panoptic_head.query_feat.weight': (9, 1)}, 'mask2former', 3, 2),
    ({'decode_head.cls_embed.weight': (4, 1), 'decode_head.query_feat.weight': (9, 1)},
     'mask2former_seg', 3, 1),
    ({'decode_head.conv_seg.weight': (3, 1)}, 'other', 3, 1),
    ({'neck.weight': (3, 1)}, 'other', None, 0),
])  # fmt: skip
def test_kind_classes_and_class_layers_of_every_head(heads, kind, classes, class_layers):
    found = described(TINY, 'backbone.', **heads)
    assert (found.kind, found.num_classes, found.arch) == (kind, classes, 'tiny')
    assert sum(map(found.is_class_layer, heads)) == class_layers
    assert not found.is_backbone


@pytest.mark.parametrize(('more', 'kind', 'classes'), [
    ({}, 'backbone', None),
    ({'head.weight': (10, 1)}, 'imagenet', 10),
    ({'head.weight': (10, 1), 'aux_head.weight': (10, 1)}, 'token_label', 10),
])  # fmt: skip
def test_kind_of_every_backbone_file(more, kind, classes):
    found = described(TINY, **more)
    assert (found.kind, found.num_classes, found.is_backbone) == (kind, classes, True)


def test_size_is_told_by_every_number_of_it():
    assert described(TINY).arch == 'tiny'
    deeper = f'layers.2.blocks.{VARIANTS["tiny"].depths[2]}.gamma'
    first = 'layers.1.blocks.0.ffn.fc1.weight'
    hidden, channels = TINY[first]
    for change in (
        {deeper: (1,)},
        {first: (hidden + channels, channels)},
        {first: (hidden, channels + 8)},
        {'layers.3.Relpos.decay': (VARIANTS['tiny'].heads[3] + 1,)},
    ):
        found = described({**TINY, **change})
        assert found.arch == '', change
        assert found.size.startswith('RMT of custom size (channels ')
    heads = {'layers.3.Relpos.decay': (VARIANTS['tiny'].heads[3],)}
    assert described({**TINY, **heads}).arch == 'tiny'
    part = {n: s for n, s in TINY.items() if not n.startswith('layers.3.')}
    assert described(part).arch == 'tiny'  # with fewer stages
