"""What every family's network does: any size, any circumstances, each argument and its effect."""

import contextlib
import copy
import pickle

import golden
import pytest
import torch
from families import FAMILIES, image, relative_error
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

from backbone import RMT, attention
from backbone.weights.match import CheckpointError


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


NETWORKS = [
    pytest.param(
        FAMILIES[family],
        name,
        id=f'{family}-{name}',
        # Triton's interpreter takes minutes for a model, and has shorter tests of its own
        marks=() if name != 'triton' or torch.cuda.is_available() else pytest.mark.slow,
    )
    for family in FAMILIES
    for name in (attention.IMPLEMENTATIONS if family == 'RMT' else ('naive', 'fused'))
]
"""The small networks, and the names of their attention."""


@pytest.mark.parametrize(('height', 'width'), [(32, 32), (33, 47), (101, 64), (64, 131)])
def test_any_size_gives_contiguous_features_at_the_published_strides(family, height, width):
    model = family.build().eval()
    with torch.no_grad():
        features = model(image(height, width))
    assert model.out_strides == [4, 8, 16, 32]
    assert model.out_channels == list(family.mini['channels'])
    for feature, channels, stride in zip(
        features, model.out_channels, model.out_strides, strict=True
    ):
        assert feature.shape == (1, channels, -(-height // stride), -(-width // stride))
        assert feature.is_contiguous()


@contextlib.contextmanager
def setting(change, back):
    change()
    try:
        yield
    finally:
        back()


def default_dtype(dtype):
    return setting(
        lambda: torch.set_default_dtype(dtype), lambda: torch.set_default_dtype(torch.float32)
    )


def threads(number):
    before = torch.get_num_threads()
    return setting(lambda: torch.set_num_threads(number), lambda: torch.set_num_threads(before))


CIRCUMSTANCES = {
    'float64 by default': lambda: default_dtype(torch.float64),
    'bfloat16 by default': lambda: default_dtype(torch.bfloat16),
    'another default device': lambda: torch.device('meta'),
    'gradients': torch.enable_grad,
    'inference mode': torch.inference_mode,
    'one thread': lambda: threads(1),
    'three threads': lambda: threads(3),
}


def runnable(name, model, device):
    for stage in model.layers if isinstance(model, RMT) else ():
        here = device, torch.float32, stage.attention.head_dim
        if reason := attention.IMPLEMENTATIONS[name].supports(*here):
            pytest.skip(f'{name} on {device}: {reason}')
    return model.to(device)


def assert_same(features, expected):
    for feature, reference in zip(features, expected, strict=True):
        assert feature.dtype == reference.dtype
        assert relative_error(feature, reference) < 1e-5


@pytest.mark.parametrize(('family', 'name'), NETWORKS)
def test_features_are_the_same_in_any_circumstances(family, name, device, no_tables):
    model, x = runnable(name, family.build(attention=name).eval(), device), image().to(device)
    with torch.no_grad():
        expected = [f.clone() for f in model(x)]
    for title, circumstance in CIRCUMSTANCES.items():
        if name == 'flex' and device.type == 'cpu' and title == 'gradients':
            continue  # it has none there
        attention._cache.clear()
        with torch.no_grad():
            with circumstance():
                assert_same([f.detach() for f in model(x)], expected)
            assert_same(model(x), expected)  # with the tables that were made then


@pytest.mark.parametrize(('family', 'name'), NETWORKS)
def test_features_do_not_depend_on_neighbours_layout_hooks_or_copies(family, name, device):
    model, x = runnable(name, family.build(attention=name).eval(), device), image().to(device)
    hooked = copy.deepcopy(model)
    for module in hooked.modules():
        module.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        expected = model(x)
        crowd = torch.cat([1e3 * image(), image(), torch.zeros_like(image())]).to(device)
        assert_same([f[1:2] for f in model(crowd)], expected)
        for same in (
            x.contiguous(memory_format=torch.channels_last),
            x.transpose(2, 3).contiguous().transpose(2, 3),
            torch.cat([x, x], dim=3)[..., : x.shape[3]],
        ):
            assert_same(model(same), expected)
        for other in (hooked, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert_same(other(x), expected)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_model_built_under_another_default_dtype_is_the_same(family, dtype, no_tables):
    with default_dtype(dtype):
        model = family.build().eval()
        assert model.layers[0].blocks[0].ffn.fc1.weight.dtype == dtype
    model.float().load_state_dict(golden.recipe_state_dict(model))
    with torch.no_grad():
        assert_same(model(image()), family.build().eval()(image()))


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize(('family', 'name'), NETWORKS)
def test_no_image_gives_empty_features(family, name, training, device):
    model = runnable(name, family.build(attention=name), device).train(training)
    x = image(64, 96)[:0].to(device).requires_grad_()
    shapes = [(0, *f.shape[1:]) for f in family.build().eval()(image(64, 96))]
    features = model(x)
    assert [tuple(f.shape) for f in features] == shapes
    sum(f.sum() for f in features).backward()
    assert x.grad.shape == x.shape
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        assert [tuple(f.shape) for f in model(x)] == shapes


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_autocast_stays_within_its_rounding(family, dtype, tolerance):
    model, x = family.build().eval(), image()
    with torch.no_grad():
        expected = model(x)
        with torch.autocast('cpu', dtype):
            features = model(x)
    for feature, reference in zip(features, expected, strict=True):
        assert relative_error(feature, reference) < tolerance


def test_bf16_model_stays_within_its_rounding(family):
    model, x = family.build().eval(), image()
    with torch.no_grad():
        expected = model(x)
        features = copy.deepcopy(model).bfloat16()(x.bfloat16())
    for feature, reference in zip(features, expected, strict=True):
        assert feature.dtype == torch.bfloat16
        assert relative_error(feature, reference) < 0.06


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base', 'large'])
def test_registry_builds_every_variant_by_name(family, arch):
    with torch.device('meta'):
        model = MODELS.build(dict(type=family.type.__name__, arch=arch))
    assert model.out_channels == list(family.type.sizes[arch].channels)


@pytest.mark.parametrize(
    ('kwargs', 'listed'),
    [
        (dict(arch='huge'), 'tiny, small, base, large'),
        (dict(width=3), 'channels'),
        (dict(arch={'channels': (16, 24, 32, 48)}), 'depths'),
        (dict(heads=(2, 3, 4)), 'heads needs 4 entries'),
        (dict(heads=(2, 3, 4, 5)), '48 channels over 5 heads'),
        (dict(out_indices=(0, 4)), '0, 1, 2, 3'),
        (dict(out_indices=()), '0, 1, 2, 3'),
        (dict(frozen_stages=5), '-1'),
        (dict(norm_cfg=dict(type='GN')), 'BN, SyncBN'),
        (dict(drop_path_rate=1.5), '0 up to'),
        (dict(attention='fastest'), 'naive'),
    ],
)
def test_unknown_values_raise_and_list_the_choices(family, kwargs, listed):
    of_size = {name: kwargs[name] for name in ('width', 'heads') if name in kwargs}
    others = {name: value for name, value in kwargs.items() if name not in of_size}
    with pytest.raises(ValueError, match=listed):
        family.type(**{'arch': family.mini | of_size, **others})


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 2, 3), (0, 2), (1,)])
def test_out_indices_select_features_and_leave_no_parameter_unused(family, out_indices):
    full, model = family.build().eval(), family.build(out_indices=out_indices, drop_path_rate=0.0)
    model.eval()
    features = model(image())
    for index, feature in zip(out_indices, features, strict=True):
        torch.testing.assert_close(feature, full(image())[index])
    sum(f.square().sum() for f in features).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('out_indices', [(1, 2, 3), (0, 1)])
def test_weights_of_the_whole_model_fit_a_model_with_fewer_outputs(family, out_indices):
    state = golden.recipe_state_dict(family())
    state[f'layers.0.{family.tables[0]}'] = torch.zeros(8)
    model = family(out_indices=out_indices)
    model.load_state_dict(state)
    state = model.from_released(state)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[name])


def test_without_output_norms_the_features_are_what_the_norms_would_take(family):
    full, model = family.build().eval(), family(output_norms=False).eval()
    model.load_state_dict(full.state_dict())  # which has the norms too
    assert [name for name in model.state_dict() if 'norms' in name] == []
    for i, (raw, normed) in enumerate(zip(model(image()), full(image()), strict=True)):
        assert raw.is_contiguous()
        norm = full.extra_norms[str(i)]
        torch.testing.assert_close(norm(raw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), normed)


def test_surplus_names_are_only_those_a_released_file_has(family):
    model = family(out_indices=(1, 2))
    surplus = [
        f'layers.0.{family.tables[0]}',
        f'layers.3.{family.tables[-1]}',
        'extra_norms.0.weight',
        'extra_norms.3.bias',
        'layers.3.blocks.0.ffn.fc1.weight',
        'layers.2.downsample.norm.weight',
    ]
    kept = ['layers.4.blocks.0.ffn.fc1.weight', 'extra_norms.7.weight', 'layers.0.Relpos.other']
    kept += list(model.state_dict())
    assert [n for n in surplus + kept if model.is_surplus(n)] == surplus


def test_drop_path_rises_linearly_over_the_blocks_and_only_acts_in_training(family):
    model = family.build(drop_path_rate=0.4)
    rates = [b.drop_path.rate for stage in model.layers for b in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert family.build().layers[-1].blocks[-1].drop_path.rate == pytest.approx(
        family.mini['drop_path']
    )
    x = image(32, 32, batch=4)
    model.eval()
    torch.testing.assert_close(model(x), family.build(drop_path_rate=0.0).eval()(x))
    model.train()
    torch.manual_seed(0)
    first = model(x)[-1]
    assert not torch.equal(first, model(x)[-1])


def test_drop_path_drops_whole_samples_and_keeps_the_mean(family):
    block = family(drop_path_rate=0.5).layers[-1].blocks[-1]
    torch.manual_seed(0)
    scale = block.drop_path.train().scale(torch.ones(2000, 2, 2, 3))
    assert scale.shape == (2000, 1, 1, 1)
    assert set(scale.unique().tolist()) == {0.0, 2.0}
    assert scale.mean() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(family, frozen_stages):
    model = family.build(frozen_stages=frozen_stages).train()
    before = copy.deepcopy(model.state_dict())
    x = image(batch=2).requires_grad_()  # so that there is a graph when all is frozen
    sum(f.square().sum() for f in model(x)).backward()
    prefixes = ['patch_embed.'] if frozen_stages >= 0 else []
    prefixes += [f'{kind}.{i}.' for i in range(frozen_stages) for kind in ('layers', 'extra_norms')]
    prefixes = tuple(prefixes)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(prefixes), name
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]) == name.startswith(prefixes), name


@pytest.mark.parametrize('norm_eval', [False, True])
def test_norm_eval_keeps_the_running_statistics(family, norm_eval):
    model = family.build(norm_eval=norm_eval).train()
    before = copy.deepcopy(dict(model.named_buffers()))
    model(image(batch=2))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]) == norm_eval, name


@pytest.mark.parametrize(('kind', 'norm'), [('BN', nn.BatchNorm2d), ('SyncBN', nn.SyncBatchNorm)])
def test_norm_cfg_chooses_the_norm_and_its_options(family, kind, norm):
    model = family(norm_cfg=dict(type=kind, momentum=0.03, requires_grad=False))
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 4 + 3  # stem, downsamples
    assert all(type(m) is norm and m.momentum == 0.03 for m in norms)
    assert not any(p.requires_grad for m in norms for p in m.parameters())


def test_with_cp_recomputes_the_same_features_and_gradients(family):
    x = image(batch=2)
    gradients, features = [], []
    for with_cp in (False, True):
        model = family.build(with_cp=with_cp).train()
        torch.manual_seed(0)  # the same blocks are dropped
        outputs = model(x)
        sum(f.square().sum() for f in outputs).backward()
        features.append(outputs)
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(features[0], features[1], rtol=0, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_with_cp_keeps_fewer_tensors_for_the_backward_pass(family):
    saved = {}
    for with_cp in (False, True):
        model, total = family.build(with_cp=with_cp).train(), [0]

        def count(tensor, total=total):
            total[0] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            model(image())
        saved[with_cp] = total[0]
    assert saved[True] < 0.6 * saved[False]


@pytest.mark.parametrize(('key', 'start'), [(None, 1.0), ('model_ema', 2.0)])
def test_init_cfg_loads_the_file_and_the_part_of_it_that_it_names(family, tmp_path, key, start):
    source = family()
    files = {
        part: {n: torch.full_like(t, value) for n, t in source.state_dict().items()}
        for part, value in (('model', 1.0), ('model_ema', 2.0))
    }
    torch.save(files, tmp_path / 'weights.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    model = family(init_cfg=init_cfg | ({'key': key} if key else {}))
    model.init_weights()
    for name, tensor in model.state_dict().items():
        assert (tensor == start).all(), name


def test_init_cfg_may_be_any_of_mmengine_and_a_file_has_the_last_word(family, tmp_path):
    ones = {n: torch.ones_like(t) for n, t in family().state_dict().items()}
    torch.save({'model': ones}, tmp_path / 'weights.pth')
    constant = dict(type='Constant', layer='Linear', val=0.25, bias=0.5)
    file = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    for init_cfg, weight in ((constant, 0.25), ([constant], 0.25), ([file, constant], 1.0)):
        model = family(init_cfg=init_cfg)
        model.init_weights()
        assert model.is_init
        assert (model.layers[0].blocks[0].ffn.fc1.weight == weight).all()


def test_part_of_a_model_is_initialised_by_it(family, tmp_path):
    ones = {n: torch.ones_like(t) for n, t in family().state_dict().items()}
    torch.save({'model': ones}, tmp_path / 'weights.pth')

    class Detector(BaseModule):
        def __init__(self):
            super().__init__()
            init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
            self.backbone = family(init_cfg=init_cfg)

    detector = Detector()
    detector.init_weights()
    assert all((tensor == 1).all() for tensor in detector.state_dict().values())


def test_init_weights_never_falls_back_to_noise(family, tmp_path):
    state = family().state_dict()
    del state['layers.2.blocks.1.ffn.fc1.weight']
    torch.save({'model': state}, tmp_path / 'weights.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    model = family(init_cfg=init_cfg)
    with pytest.raises(CheckpointError, match=r'layers\.2\.blocks\.1\.ffn\.fc1\.weight'):
        model.init_weights()
