"""--cfg-options: paths stay as typed, everything else is read as mmengine reads it."""

import argparse
import inspect

import pytest
from mmengine.config import Config, DictAction
from mmengine.runner import Runner
from support import cli, options
from support.cli import UserError

CFG = dict(
    data_root='data/coco',
    pretrained=None,
    load_from=None,
    work_dir='work_dirs/x',
    train_dataloader=dict(
        batch_size=2,
        dataset=dict(
            ann_file='a.json',
            data_prefix=dict(img='train/'),
            files=['a.json'],
            pipeline=[dict(type='Resize', scale=(1333, 800))],
        ),
    ),
    model=dict(
        backbone=dict(type='RMT', arch='tiny', init_cfg=dict(type='Pretrained', checkpoint='a')),
        classes=('cat', 'dog'),
    ),
    optim_wrapper=dict(loss_scale='dynamic', optimizer=dict(lr=1e-4, betas=(0.9, 0.999))),
    val_evaluator=dict(metric='bbox', outfile_prefix=None),
    resume=False,
    experiment_name='one',
)


def merged(*words: str) -> Config:
    """CFG changed as by a tool that is called with these words."""
    parser = argparse.ArgumentParser()
    cli.add_cfg_options(parser)
    cfg = Config(CFG)
    options.merge(cfg, parser.parse_args(['--cfg-options', *words]).cfg_options)
    return cfg


@pytest.mark.parametrize(
    'path',
    ['/my data/a,b', '/a  b/c', '/data (old)/x', '/a[1', '2024', '1e5', 'true', '/x=y', "/it's/x"],
)
@pytest.mark.parametrize(
    'key',
    [
        'data_root', 'pretrained', 'load_from', 'work_dir', 'train_dataloader.dataset.ann_file',
        'train_dataloader.dataset.data_prefix.img', 'val_evaluator.outfile_prefix',
        'model.backbone.init_cfg.checkpoint', 'train_dataloader.dataset.data_root',
    ],
)  # fmt: skip
def test_a_path_stays_as_it_is(key: str, path: str) -> None:
    assert options.at(merged(f'{key}={path}'), key) == path
    assert options.at(merged(f'{key}="{path}"'), key) == path


def test_no_path_and_several_paths() -> None:
    assert merged('pretrained=None').pretrained is None
    found = merged('train_dataloader.dataset.ann_file=[a b.json,c.json]')
    assert found.train_dataloader.dataset.ann_file == ['a b.json', 'c.json']
    found = merged('train_dataloader.dataset.files=a.json,b.json')
    assert found.train_dataloader.dataset.files == ['a.json', 'b.json']


@pytest.mark.parametrize(
    ('word', 'value'),
    [
        ('train_dataloader.dataset.pipeline.0.scale=(640,480)', (640, 480)),
        ('train_dataloader.dataset.pipeline.0.scale=(640, 480)', (640, 480)),
        ('train_dataloader.dataset.pipeline.0.scale=640,480', (640, 480)),
        ('train_dataloader.dataset.pipeline.0.scale=[640, 480]', (640, 480)),
        ('model.new=[(1333,800),(640,480)]', [(1333, 800), (640, 480)]),
        ('optim_wrapper.optimizer.lr=2e-4', 2e-4),
        ('optim_wrapper.loss_scale=512', 512),
        ('optim_wrapper.loss_scale=dynamic', 'dynamic'),
        ('val_evaluator.metric=bbox,segm', ['bbox', 'segm']),
        ('val_evaluator.metric=[bbox, segm]', ['bbox', 'segm']),
        ('model.classes=("traffic light",person)', ('traffic light', 'person')),
        ('train_dataloader.batch_size= 4', 4),
        ('resume=True', True),
        ('experiment_name=my run', 'my run'),
        ("experiment_name='my run'", 'my run'),
        ('model.new.key=1,2', [1, 2]),
        ('model.new.key=[1,[2,3]]', [1, [2, 3]]),
        ('model.backbone.arch=small', 'small'),
        ('model.backbone.init_cfg=None', None),
    ],
)  # fmt: skip
def test_anything_else_is_what_mmengine_makes_of_it(word: str, value: object) -> None:
    key, _, text = word.partition('=')
    found = options.at(merged(word), key)
    assert found == value
    assert type(found) is type(value)
    if ' ' not in text and not isinstance(options.at(Config(CFG), key), tuple):
        assert found == DictAction._parse_iterable(text)


def test_the_last_word_counts_and_a_list_in_a_program_is_taken_as_it_is() -> None:
    assert merged('data_root=a', 'data_root=b').data_root == 'b'
    cfg = Config(CFG)
    options.merge(cfg, {'train_dataloader.dataset.pipeline.0.scale': [640, 480]})
    assert cfg.train_dataloader.dataset.pipeline[0].scale == (640, 480)


@pytest.mark.parametrize(
    ('word', 'says'),
    [
        ('data', 'data: must be KEY=VALUE; in quotes where it has spaces'),
        ('=x', '=x: must be KEY=VALUE'),
        ('val_evaluator.metric=[bbox,a', 'val_evaluator.metric=[bbox,a: '),
        ('data_rot=x', 'data_rot: the config has no data_rot; did you mean data_root?'),
        ('compil=True', 'compil: the config has no compil; did you mean compile?'),
    ],
)
def test_what_cannot_be_meant_is_refused(word: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        merged(word)
    assert str(error.value).startswith(f'--cfg-options {says}')


@pytest.mark.parametrize(
    'word',
    [
        'compile=True', 'compile.backend=eager', 'efficient_conv_bn_eval=[backbone]',
        'activation_checkpointing=[backbone.layers.0]', 'tta_model.type=DetTTAModel',
        'tta_pipeline=[]', 'sync_bn=torch', 'find_unused_parameters=True', 'data_preprocessor=None',
        'model_wrapper_cfg.type=X', 'randomness.seed=1', 'log_level=DEBUG', 'custom_hooks=[]',
    ],
)  # fmt: skip
def test_a_key_that_the_runner_reads_needs_no_place_in_the_config(word: str) -> None:
    key = word.partition('=')[0]
    assert key.split('.')[0] not in Config(CFG)
    assert options.at(merged(word), key) is not None or 'None' in word


def test_every_argument_of_the_runner_is_known() -> None:
    assert set(inspect.signature(Runner).parameters) - {'cfg'} <= options.runner_keys()
    assert not {'self', 'type', 'cfg', 'enable'} & options.runner_keys()
