"""Released files go into the tools as they are; what is not theirs ends in one line."""

import golden
import pytest
import torch
from conftest import DET_CONFIG, ROOT
from mmengine.config import Config
from mmengine.registry import MODELS
from released_files import downstream_file, imagenet_file, numbered, uninitialised

from backbone import RAVLT, RMT


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    """A directory with weights files of several kinds."""
    folder = tmp_path_factory.mktemp('released')
    with uninitialised():
        model = MODELS.build(Config.fromfile(ROOT / DET_CONFIG).model)
        tiny, small, ravlt = RMT('tiny'), RMT('small'), RAVLT('small')
    weights = golden.recipe_state_dict(model)
    torch.save(downstream_file(model, weights), folder / 'detector.pth')
    backbone = imagenet_file(tiny, token_label=True)
    backbone['model'].update({  # numbers that can be computed with
        n: t for n, t in golden.recipe_state_dict(tiny).items() if not n.startswith('extra_norms.')
    })  # fmt: skip
    torch.save(backbone, folder / 'tiny.pth')
    torch.save({'model': numbered(small)}, folder / 'small.pth')
    torch.save(imagenet_file(ravlt), folder / 'ravlt.pth')
    (folder / 'page.pth').write_text('<!DOCTYPE html><title>Sign in</title>')

    class Code:
        def __reduce__(self):
            return eval, (f'open({str(folder / "it-ran")!r}, "w").close()',)

    torch.save({'state_dict': weights, 'meta': Code()}, folder / 'code.pth')
    return folder


def options(tiny_det, *more):
    return ['--cfg-options', *tiny_det, *more]


def test_a_released_detector_is_evaluated(released, tiny_det, run_tool, tmp_path, capfd):
    arguments = (released / 'detector.pth', '--work-dir', tmp_path, *options(tiny_det))
    assert run_tool('test', DET_CONFIG, *arguments) == 0
    said = ''.join(capfd.readouterr())
    assert 'RMT-T Mask R-CNN, 80 classes: 407 tensors loaded, 8 dropped' in said


def test_a_detector_of_another_family_is_not_evaluated(
    released, tiny_det, run_tool, tmp_path, capfd
):
    options_ = options(tiny_det, 'model.backbone.type=RAVLT')
    arguments = (released / 'detector.pth', '--work-dir', tmp_path, *options_)
    assert run_tool('test', DET_CONFIG, *arguments) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert 'detector.pth: these are RMT-T weights; the config builds RAVLT-T (' in error


def test_a_detector_trained_from_others_classes_is_evaluated_with_its_own(
    released, tiny_det, run_tool, tmp_path, capfd
):
    """With every hook of a config of tools/new_config.py: one of them builds the training loop."""
    config = tmp_path / 'own.py'
    config.write_text(f"""
_base_ = {str(ROOT / DET_CONFIG)!r}
custom_hooks = [
    dict(type='StrictLoadHook', own_classes=True),
    dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP'),
]
""")
    arguments = (released / 'detector.pth', '--work-dir', tmp_path, *options(tiny_det))
    assert run_tool('test', config, *arguments) == 0
    said = ''.join(capfd.readouterr())
    assert '407 tensors loaded, 8 dropped' in said
    assert 'start anew' not in said


@pytest.mark.parametrize(('file', 'words'), [
    ('tiny.pth', 'an RMT-T ImageNet classifier with token labelling, 1000 classes, without'),
    ('small.pth', 'an RMT-S backbone, without the heads'),
    ('ravlt.pth', 'an RAVLT-S ImageNet classifier, 1000 classes, without'),
    ('page.pth', 'an HTML page'),
    ('code.pth', 'refused, it asks for eval'),
])  # fmt: skip
@pytest.mark.parametrize('tool', ['test', 'image_demo'])
def test_other_files_are_refused_in_one_line(
    tool, file, words, released, tiny_det, tiny_coco, run_tool, tmp_path, capfd
):
    if tool == 'test':
        arguments = (DET_CONFIG, released / file, '--work-dir', tmp_path, *options(tiny_det))
    else:
        arguments = (DET_CONFIG, released / file, tiny_coco / 'val2017', '--out-dir', tmp_path)
    assert run_tool(tool, *arguments) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1
    assert words in errors[0]
    assert 'Traceback' not in errors[0]
    assert not (released / 'it-ran').exists()


@pytest.mark.parametrize(('option', 'file', 'words'), [
    ('pretrained', 'small.pth', 'these are RMT-S weights; the config builds RMT-T'),
    ('pretrained', 'code.pth', 'refused, it asks for eval'),
    ('load_from', 'small.pth', 'these are RMT-S weights; the config builds RMT-T'),
    ('pretrained', 'ravlt.pth', 'these are RAVLT-S weights; the config builds RMT-T'),
    ('load_from', 'ravlt.pth', 'these are RAVLT-S weights; the config builds RMT-T'),
    ('load_from', 'code.pth', 'refused, it asks for eval'),
    ('resume', 'code.pth', 'refused, it asks for eval'),
    ('resume', 'detector.pth', 'so it cannot be resumed'),
])  # fmt: skip
def test_training_does_not_start_from_other_files(
    option, file, words, released, tiny_det, run_tool, tmp_path, capfd
):
    path = released / file
    if option == 'resume':
        arguments = ('--resume', path, *options(tiny_det))
    else:
        arguments = options(tiny_det, f'{option}={path}')
    assert run_tool('train', DET_CONFIG, '--work-dir', tmp_path, *arguments) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1
    assert words in errors[0]
    assert not (released / 'it-ran').exists()
    assert not list(tmp_path.glob('*.pth'))
