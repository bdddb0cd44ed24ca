"""The converter: says what a file is, writes it whole or not at all, and changes no result."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import convert_checkpoint
import golden
import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from released_files import (
    MINI,
    assert_holds,
    classifier,
    downstream_file,
    imagenet_file,
    names_digest,
    numbered,
    released,
    uninitialised,
    with_tables,
)
from support import cli

from backbone import RAVLT, RMT, VARIANTS, MAViT
from backbone.weights.layout import KINDS, recognise
from backbone.weights.match import CheckpointError, load_backbone, load_model, match_checkpoint
from backbone.weights.read import read_checkpoint

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ('det_configs', 'seg_configs')
    for path in (ROOT / folder).glob('*_rmt_*.py')
)
SMALLEST = {
    'Mask R-CNN': 'det_configs/mask_rcnn_rmt_t_fpn_1x_coco.py',
    'RetinaNet': 'det_configs/retinanet_rmt_t_fpn_1x_coco.py',
    'Cascade Mask R-CNN': 'det_configs/cascade_mask_rcnn_rmt_s_fpn_3x_coco.py',
    'Semantic FPN': 'seg_configs/fpn_rmt_t_80k_ade20k.py',
    'UperNet': 'seg_configs/upernet_rmt_t_160k_ade20k.py',
}
OF_EVERY_KIND = {
    **SMALLEST,
    'ATSS': 'det_configs/atss_rmt_t_fpn_1x_coco.py',
    'RTMDet': 'det_configs/rtmdet_rmt_s_100e_coco.py',
    'DINO': 'det_configs/dino_rmt_t_4scale_12e_coco.py',
    'Mask2Former (detection)': 'det_configs/mask2former_rmt_t_50e_coco.py',
    'Mask2Former (segmentation)': 'seg_configs/mask2former_rmt_t_160k_ade20k.py',
}


@pytest.fixture(autouse=True)
def quick():
    """Every weight here comes from a file."""
    with uninitialised():
        yield


def build(config, num_classes=None):
    return convert_checkpoint.build(str(ROOT / config), num_classes)


def convert(*args) -> None:
    convert_checkpoint.main([str(arg) for arg in args])


@pytest.fixture
def files(tmp_path):
    """(path to read, path to write)."""
    return str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth')


# --- whole, in every layout ----------------------------------------------------------------------


@pytest.mark.parametrize('config', CONFIGS)
def test_every_tensor_of_every_detector_and_segmentor_arrives(config):
    model = build(config)
    values, first = numbered(model), {}
    for name, tensor in model.state_dict().items():  # RTMDet's levels share convolutions
        if tensor.numel() and name in values:
            values[name] = values[first.setdefault((tensor.data_ptr(), tensor.shape), name)]
    file = downstream_file(model, values)
    result = match_checkpoint(model, file, training=False)
    assert result.filled == []
    assert all('Relpos' in name or 'extra_norms' in name for name in result.dropped)
    model.load_state_dict(result.state_dict)
    assert_holds(model, file['state_dict'])


@pytest.mark.parametrize(
    ('arch', 'layout', 'ending'),
    [
        ('tiny', 'pth', 'pth'),
        ('tiny', 'released', 'pth'),
        ('small', 'safetensors', 'safetensors'),
        pytest.param('base', 'released', 'pth', marks=pytest.mark.slow),
        pytest.param('large', 'safetensors', 'pth', marks=pytest.mark.slow),
    ],
)
def test_features_equal_the_goldens_after_a_round_trip(arch, layout, ending, tmp_path):
    source, out = tmp_path / 'in.pth', tmp_path / f'out.{ending}'
    model = RMT(arch)
    weights = with_tables(golden.recipe_state_dict(model), model)
    top = classifier(model.variant.channels[-1], token_label=True)
    torch.save({'model': {**weights, **top}, 'epoch': 299}, source)
    convert(source, out, '--to', layout)
    model = RMT(arch).eval()
    load_backbone(model, str(out))
    with torch.no_grad():
        features = model(golden.recipe_input(golden.INPUT_SHAPE))
    assert max(golden.golden_errors(features, arch)) < golden.LIMIT
    if layout == 'released':
        again = torch.load(out, weights_only=True)['model']
        assert names_digest(again) == names_digest(weights)
        assert all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ('kind', 'ending'),
    zip(SMALLEST, ['pth', 'safetensors', 'pth', 'safetensors', 'pth'], strict=True),
)
def test_a_downstream_file_keeps_every_tensor_and_its_classes(kind, ending, tmp_path, capsys):
    source, out = tmp_path / 'in.pth', tmp_path / f'out.{ending}'
    model = build(SMALLEST[kind])
    weights = numbered(model)
    halves = {n: t.half() if t.is_floating_point() else t for n, t in weights.items()}
    torch.save(downstream_file(model, halves, classes=('one', 'two')), source)
    convert(source, out)
    checkpoint = load_model(model, str(out))
    assert_holds(model, weights)
    assert checkpoint['meta']['dataset_meta'] == {'classes': ['one', 'two']}
    own = checkpoint['meta']['rmt']
    assert own['source'] == 'in.pth'
    assert own['epoch'] == 12
    assert len(own['source_sha256']) == len(own['tensors_sha256']) == 64
    assert kind in capsys.readouterr().out


def test_a_detector_gives_the_same_detections_after_conversion(tmp_path):
    config = SMALLEST['Mask R-CNN']
    model = build(config, 3).eval()
    weights = golden.recipe_state_dict(model)
    weights['rpn_head.rpn_cls.bias'] = torch.full((3,), -1.0)
    names = {'source': 'in.pth', 'clean': 'out.pth', 'safe': 'o.safetensors', 'back': 'back.pth'}
    paths = {name: str(tmp_path / file) for name, file in names.items()}
    torch.save(downstream_file(model, weights), paths['source'])
    convert(paths['source'], paths['clean'])
    convert(paths['clean'], paths['safe'])
    convert(paths['safe'], paths['back'], '--to', 'released')
    model.roi_head.test_cfg.update(score_thr=0.0, max_per_img=20)
    model.rpn_head.test_cfg.max_per_img = 20
    found = {}
    del paths['safe']
    for name, path in paths.items():
        for parameter in model.parameters():
            parameter.data.fill_(float('nan'))
        load_model(model, path)
        found[name] = detect(model)
    assert len(found['source'].scores) > 10
    for name in ('clean', 'back'):
        for field in ('bboxes', 'scores', 'labels', 'masks'):
            assert torch.equal(found[name][field], found['source'][field]), (name, field)


def detect(model):
    from mmdet.structures import DetDataSample

    image = (golden.recipe_input((3, 64, 96)) * 50 + 110).clip(0, 255).to(torch.uint8)
    sample = DetDataSample(
        metainfo=dict(img_shape=(64, 96), ori_shape=(64, 96), scale_factor=(1.0, 1.0), img_id=0)
    )
    with torch.no_grad():
        return model.test_step(dict(inputs=[image], data_samples=[sample]))[0].pred_instances


# --- what is left out and filled in --------------------------------------------------------------


def test_an_imagenet_file_becomes_a_clean_backbone(files, capsys):
    source, out = files
    model = RMT('tiny')
    torch.save(imagenet_file(model, token_label=True), source)
    convert(source, out, '--arch', 'tiny')
    said = capsys.readouterr().out
    assert 'RMT-T ImageNet classifier with token labelling, 1000 classes' in said
    assert 'matched: 357 tensors; renamed: none' in said
    assert 'Relpos' in said
    assert 'optimizer' in said
    assert 'filled: extra_norms.0.weight' in said
    checkpoint = read_checkpoint(out)
    assert set(checkpoint) == {'meta', 'state_dict'}
    assert checkpoint['state_dict'].keys() == model.state_dict().keys()
    load_backbone(model, out)
    assert_holds(model, numbered(model), but='extra_norms.')
    assert torch.equal(model.extra_norms['0'].weight, torch.ones(64))


def test_model_ema_is_converted_when_asked(files):
    source, out = files
    model = RMT('tiny')
    torch.save(imagenet_file(model), source)
    convert(source, out, '--ema')
    load_backbone(model, out)
    assert_holds(model, numbered(model, start=0.5), but='extra_norms.')


@pytest.mark.parametrize('kind', ['Mask R-CNN', 'RetinaNet', 'Semantic FPN'])
def test_a_dropped_head_lets_own_classes_be_trained(kind, files, capsys):
    source, out = files
    config = SMALLEST[kind]
    file = downstream_file(build(config), numbered(build(config)))
    torch.save(file, source)
    mine = build(config, 2)
    with pytest.raises(CheckpointError, match='--drop-head; then'):
        match_checkpoint(mine, read_checkpoint(source), training=True)
    convert(source, out, '--drop-head')
    result = match_checkpoint(mine, read_checkpoint(out), training=True)
    assert result.filled
    assert all(name in capsys.readouterr().out for name in result.filled[:1])
    assert {n.rsplit('.', 1)[0].rsplit('.', 1)[-1] for n in result.filled} <= {
        'fc_cls', 'fc_reg', 'conv_logits', 'retina_cls', 'conv_seg'
    }  # fmt: skip
    for name, tensor in result.state_dict.items():
        if name not in result.filled:
            assert torch.equal(tensor, file['state_dict'][name]), name
    with pytest.raises(CheckpointError, match='without the heads'):
        match_checkpoint(mine, read_checkpoint(out), training=False)


@pytest.mark.parametrize('kind', OF_EVERY_KIND)
def test_class_layers_are_those_whose_size_follows_the_class_count(kind):
    weights = [build(OF_EVERY_KIND[kind], count).state_dict() for count in (2, 5)]
    description = recognise(weights[0])
    assert (KINDS[description.kind].label, description.num_classes) == (kind, 2)
    shapes = [{name: tensor.shape for name, tensor in part.items()} for part in weights]
    differ = {name for name in shapes[0] if shapes[0][name] != shapes[1][name]}
    assert differ == {name for name in shapes[0] if description.is_class_layer(name)}


@MODELS.register_module()
class Holder(BaseModule):
    """A model of a backbone alone."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone)


def holder(folder, **backbone):
    """A config of one."""
    config = folder / 'holder.py'
    config.write_text(f'model = dict(type="Holder", backbone={backbone})')
    return config


def test_a_custom_size_is_checked_against_its_config(files, tmp_path):
    source, out = files
    config = holder(tmp_path, type='RMT', arch=MINI)
    model = RMT(MINI)
    torch.save({'model': numbered(model)}, source)
    with pytest.raises(CheckpointError, match=r'RMT of custom size .*; give the --config'):
        convert(source, out)
    convert(source, out, '--config', config)
    load_backbone(model, out)
    assert_holds(model, numbered(model))
    with pytest.raises(CheckpointError, match='released code has no RMT of this size'):
        convert(source, out + '2', '--config', config, '--to', 'released')


# --- families of the same names ------------------------------------------------------------------


@pytest.mark.parametrize('network', [RAVLT, MAViT])
def test_every_layout_says_the_family_and_the_released_one_comes_back_exactly(
    network, tmp_path, capsys
):
    paths = [tmp_path / name for name in ('in.pth', 'ours.pth', 'o.safetensors', 'back.pth')]
    model = network('tiny')
    file = imagenet_file(model)
    torch.save(file, paths[0])
    for source, out in itertools.pairwise(paths):
        convert(source, out, *(['--to', 'released'] if out is paths[-1] else []))
    said = capsys.readouterr().out
    assert [words in said for words in ('renamed: as ours are', 'renamed: as released')] == [
        True
    ] * 2
    for path in paths:
        convert('--inspect', path)
        said = ' '.join(capsys.readouterr().out.split())
        assert f'variant: {network.__name__}-T (released as ' in said
        assert 'complete: the backbone is' in said
        checkpoint = read_checkpoint(path)
        told = checkpoint.get('meta', {}).get('rmt', {}).get('family')
        assert told == (None if path is paths[0] else network.__name__)
    load_backbone(model, str(paths[2]))
    assert_holds(model, numbered(model), but='extra_norms.')
    back = read_checkpoint(paths[-1])['model']
    weights = {n: t for n, t in file['model'].items() if not n.startswith(('proj', 'norm', 'head'))}
    assert {n for n in back if n not in weights} == {
        f'extra_norms.{i}.norm.{kind}' for i in range(4) for kind in ('weight', 'bias')
    }
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())


def test_a_file_that_does_not_tell_its_family_is_told_it_by_a_config(files, tmp_path, capsys):
    source, out = files
    model = MAViT('tiny')
    torch.save({'model': released(numbered(model), model)}, source)
    convert('--inspect', source)
    said = ' '.join(capsys.readouterr().out.split())
    line = 'RAVLT or MAViT, nothing in the file tells which'
    assert f'variant: RAVLT-T or MAViT-T family: {line} parameters' in said
    convert(source, out)
    assert f'{source}: {line}: give the --config it was trained with' in capsys.readouterr().out
    assert 'family' not in read_checkpoint(out)['meta']['rmt']
    config = holder(tmp_path, type='MAViT', arch='tiny')
    convert(out, tmp_path / 'told.pth', '--config', config)
    assert f'{line}; taken for MAViT-T, as --config has it' in capsys.readouterr().out
    convert('--inspect', tmp_path / 'told.pth')
    assert 'variant: MAViT-T (released as MALA_T)' in ' '.join(capsys.readouterr().out.split())
    config = holder(tmp_path, type='RAVLT', arch='tiny')
    with pytest.raises(CheckpointError, match='these are MAViT-T weights; the config builds RAVLT'):
        convert(tmp_path / 'told.pth', tmp_path / 'other.pth', '--config', config)
    assert not (tmp_path / 'other.pth').exists()


# --- nothing is written unless all of it is right ------------------------------------------------


def spoil_missing(state_dict):
    del state_dict['layers.1.blocks.0.ffn.fc1.bias']


def spoil_extra(state_dict):
    state_dict['layers.1.blocks.0.extra'] = torch.zeros(1)


def spoil_nan(state_dict):
    state_dict['layers.1.blocks.0.ffn.fc1.bias'][3] = float('nan')


@pytest.mark.parametrize(('spoil', 'words'), [
    (spoil_missing, 'the file is incomplete (1 missing: layers.1.blocks.0.ffn.fc1.bias)'),
    (spoil_extra, '1 unexplained: layers.1.blocks.0.extra'),
    (spoil_nan, 'layers.1.blocks.0.ffn.fc1.bias holds NaN or infinity'),
])  # fmt: skip
def test_nothing_is_written_of_a_wrong_file(spoil, words, files):
    source, out = files
    weights = numbered(RMT('tiny'))
    spoil(weights)
    torch.save({'model': weights}, source)
    with pytest.raises(CheckpointError) as caught:
        convert(source, out)
    assert words in str(caught.value)
    assert os.listdir(os.path.dirname(out)) == ['in.pth']


def test_a_head_that_is_not_whole_is_refused_without_a_config_given(files):
    source, out = files
    model = build(SMALLEST['Semantic FPN'])
    file = downstream_file(model, numbered(model))
    del file['state_dict']['neck.fpn_convs.2.conv.weight']
    torch.save(file, source)
    with pytest.raises(CheckpointError, match=r'1 missing: neck\.fpn_convs\.2\.conv\.weight'):
        convert(source, out)
    assert not os.path.exists(out)


def test_a_failed_write_leaves_nothing_behind(files, monkeypatch):
    source, out = files
    torch.save({'model': numbered(RMT('tiny'))}, source)

    def full(data, path):
        Path(path).write_bytes(b'PK half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('backbone.weights.write.torch.save', full)
    with pytest.raises(CheckpointError, match=r'cannot be written .*No space left'):
        convert(source, out)
    assert os.listdir(os.path.dirname(out)) == ['in.pth']


def test_an_existing_file_is_kept(files):
    source, out = files
    torch.save({'model': numbered(RMT('tiny'))}, source)
    Path(out).write_text('precious')
    with pytest.raises(CheckpointError, match='exists; give another name'):
        convert(source, out)
    assert Path(out).read_text() == 'precious'


def test_another_arch_or_no_class_layers_are_refused(files):
    source, out = files
    torch.save({'model': numbered(RMT('tiny'))}, source)
    with pytest.raises(CheckpointError, match='these are RMT-T backbone; --arch asks for RMT-S'):
        convert(source, out, '--arch', 'small')
    with pytest.raises(CheckpointError, match='has no class layers to drop'):
        convert(source, out, '--drop-head')
    with pytest.raises(CheckpointError, match="no weights under 'model_ema'"):
        convert(source, out, '--ema')
    with pytest.raises(cli.UserError, match='no such config'):
        convert(source, out, '--config', 'nowhere.py')


# --- inspecting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(('arch', 'parameters'), [('tiny', '14,334,216'), ('small', '26,967,240')])
def test_inspect_tells_what_an_imagenet_file_is(arch, parameters, files, capsys):
    torch.save(imagenet_file(RMT(arch)), files[0])
    convert('--inspect', files[0])
    said = ' '.join(capsys.readouterr().out.split())
    variant = VARIANTS[arch]
    for words in (
        'kind: ImageNet classifier',
        f'variant: RMT-{variant.letter} (released as {variant.released_name})',
        f'parameters: {parameters} in',
        'classes: 1000',
        'epoch: 299',
        'also inside: optimizer, model_ema, args complete',
        ': the backbone is',
    ):
        assert words in said, said


def test_inspect_tells_what_a_detector_is_and_what_is_wrong(files, capsys):
    model = build(SMALLEST['RetinaNet'], 2)
    file = downstream_file(model, numbered(model), classes=('cat', 'dog'))
    del file['state_dict']['backbone.patch_embed.proj.0.bias']
    torch.save(file, files[0])
    convert('--inspect', files[0])
    said = ' '.join(capsys.readouterr().out.split())
    for words in (
        'kind: RetinaNet variant: RMT-T (released as RMT_T3)',
        'classes: 2 (cat, dog)',
        'epoch: 12',
        'written by: mmdet_version 2.11.0',
        'complete: no: the file is incomplete (1 missing: patch_embed.proj.0.bias)',
    ):
        assert words in said, said


@pytest.mark.parametrize(('lacking', 'said'), [
    ((), 'the backbone is, with the output norms of stages 2, 3, 4'),
    (('extra_norms.2.weight', 'extra_norms.2.bias'),
     'the backbone is, with the output norms of stages 2, 4'),
    ([f'extra_norms.{i}.{kind}' for i in (1, 2, 3) for kind in ('weight', 'bias')],
     'the backbone is, without output norms'),
    (('extra_norms.2.bias',), 'no: the file is incomplete (1 missing: extra_norms.2.bias)'),
    (('patch_embed.proj.0.bias',), 'no: the file is incomplete (1 missing: patch_embed.proj.0.b'),
])  # fmt: skip
def test_inspect_misses_no_norm_of_a_stage_that_a_detector_of_ours_does_not_read(
    lacking, said, files, capsys
):
    model = Holder(dict(type='RMT', arch='tiny', out_indices=(1, 2, 3)))
    weights = numbered(model)
    for name in lacking:
        del weights[f'backbone.{name}']
    torch.save({'meta': {}, 'state_dict': weights}, files[0])
    convert('--inspect', files[0])
    assert f'complete: {said}' in ' '.join(capsys.readouterr().out.split())


@pytest.mark.parametrize(('meta', 'words', 'absent'), [
    ({'epoch': 0, 'iter': 160_000}, 'iteration: 160000', 'epoch'),
    ({'epoch': 12, 'iter': 1000}, 'epoch: 12 iteration: 1000', 'nothing'),
    ({'epoch': 0, 'iter': 0}, 'epoch: 0', 'nothing'),
    ({'rmt': {'iter': 5}}, 'iteration: 5', 'epoch'),
])  # fmt: skip
def test_inspect_tells_how_long_a_run_was(meta, words, absent, files, capsys):
    torch.save({'meta': meta, 'state_dict': RMT('tiny').state_dict()}, files[0])
    convert('--inspect', files[0])
    said = ' '.join(capsys.readouterr().out.split())
    assert words in said
    assert absent not in said


@pytest.mark.parametrize('value', [
    5, 'text', [1], {'dropped_head': [5]},
    {'source': 5, 'tensors_sha256': [1], 'dropped_head': 3, 'epoch': {}, 'date': b''},
])  # fmt: skip
def test_inspect_and_convert_take_no_harm_from_crafted_meta(value, files, capsys):
    source, out = files
    meta = {'rmt': value, 'epoch': value, 'a\x1b[2J_version': 'x\ny', 3: 4}
    torch.save({'meta': meta, 'state_dict': numbered(RMT('tiny')), 'epoch': value}, source)
    convert('--inspect', source)
    said = capsys.readouterr().out
    assert '\x1b' not in said
    assert len(said.splitlines()) < 12
    convert(source, out)
    assert read_checkpoint(out)['meta']['rmt']['arch'] == 'tiny'


@pytest.mark.parametrize('ending', ['pth', 'safetensors'])
def test_a_file_in_half_precision_is_converted_as_it_is(ending, files, tmp_path, capsys):
    model = RMT('tiny')
    weights = {n: t.bfloat16() for n, t in with_tables(numbered(model), model).items()}
    torch.save({'model': weights}, files[0])
    convert('--inspect', files[0])
    assert 'complete: the backbone is' in ' '.join(capsys.readouterr().out.split())
    out = tmp_path / f'out.{ending}'
    convert(files[0], out)
    assert read_checkpoint(out)['state_dict']['patch_embed.proj.0.weight'].dtype == torch.bfloat16
    load_backbone(model, str(out))
    assert_holds(model, {n: t.float() for n, t in weights.items()}, but='num_batches_tracked')


def test_the_advised_command_works(tmp_path, monkeypatch):
    """For a model of somebody's own, of which there is no config here."""
    config = tmp_path / 'my own.py'
    head = 'dict(in_channels=8, feat_channels=8, stacked_convs=1, num_classes=2)'
    arch = {'_delete_': True, **MINI}
    config.write_text(
        f'_base_ = {str(ROOT / SMALLEST["RetinaNet"])!r}\nmodel = dict(backbone=dict(arch={arch}), '
        f'neck=dict(in_channels={list(MINI["channels"])}, out_channels=8), bbox_head={head})'
    )
    mine, theirs = (convert_checkpoint.build(str(config), count) for count in (None, 5))
    source = tmp_path / 'five classes.pth'
    torch.save({'meta': {}, 'state_dict': numbered(theirs)}, source)
    with pytest.raises(CheckpointError) as caught:
        match_checkpoint(mine, read_checkpoint(source), training=True, config=str(config))
    found = re.search(r"first: (.*); then train with load_from=('.*'|\S+) ", str(caught.value))
    command, out = found.groups()
    python, script, *arguments = shlex.split(command)
    assert (python, ROOT / script) == ('python', Path(convert_checkpoint.__file__))
    monkeypatch.chdir(tmp_path)
    convert(*arguments)
    result = match_checkpoint(mine, read_checkpoint(shlex.split(out)[0]), training=True)
    assert result.filled == ['bbox_head.retina_cls.weight', 'bbox_head.retina_cls.bias']


def test_inspect_tells_equal_weights_in_either_packing(files, tmp_path, capsys):
    source, out = files
    torch.save(imagenet_file(RMT('tiny')), source)
    convert(source, out)
    convert(source, tmp_path / 'out.safetensors')
    capsys.readouterr()
    said = []
    for file in (out, tmp_path / 'out.safetensors'):
        convert('--inspect', file)
        said += re.findall(r'tensors: sha256 (\w{64})', capsys.readouterr().out)
    assert len(said) == 2
    assert said[0] == said[1]


def test_a_refusal_is_one_line_and_a_failure(tmp_path):
    page = tmp_path / 'page.pth'
    page.write_text('<html>sign in</html>')
    command = [sys.executable, str(ROOT / 'tools/convert_checkpoint.py'), '--inspect', str(page)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ''
    assert done.stderr.strip() == (
        f'error: {page}: an HTML page saved under this name (a login or error page?); download it '
        'again'
    )
