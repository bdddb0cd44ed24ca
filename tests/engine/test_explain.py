"""A mistake in a config names its key and the nearest that exists, before anything is computed."""

from collections.abc import Callable

import pytest
import torch
from mmengine.config import Config
from released_files import MINI
from small_run import quick, small_config

from backbone import RMT
from backbone.engine import ConfigError, PortableRunner
from backbone.engine.explain import arguments


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


def built(cfg: Config) -> None:
    """All that is built before the first iteration."""
    runner = PortableRunner.from_cfg(cfg)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, 'load_or_resume', lambda: pytest.fail('reached the training'))
        runner.train()


@pytest.mark.parametrize(
    ('option', 'line'),
    [
        (
            {'default_hooks.checkpoint.intervall': 3},
            'default_hooks.checkpoint.intervall: CheckpointHook has no intervall; '
            'did you mean interval?',
        ),
        (
            {'default_hooks.checkpoint.save_optimiser': False},
            'default_hooks.checkpoint.save_optimiser: CheckpointHook has no save_optimiser; '
            'did you mean save_optimizer?',
        ),
        (
            {'default_hooks.logger.intervall': 3},
            'default_hooks.logger.intervall: LoggerHook has no intervall; did you mean interval?',
        ),
        (
            {'optim_wrapper.optimizer.wieght_decay': 0.1},
            'optim_wrapper.optimizer.wieght_decay: SGD has no wieght_decay; '
            'did you mean weight_decay?',
        ),
        (
            {'optim_wrapper.optimizer.type': 'AdmW'},
            'optim_wrapper.optimizer.type=AdmW: no such optimizer; did you mean AdamW?',
        ),
        (
            {'optim_wrapper.clip_grad': dict(max_nrom=1)},
            'optim_wrapper.clip_grad.max_nrom: no max_nrom there; did you mean max_norm?',
        ),
        (
            {'optim_wrapper.paramwise_cfg': dict(norm_decay=0)},
            'optim_wrapper.paramwise_cfg.norm_decay: no norm_decay there; '
            'did you mean norm_decay_mult?',
        ),
        (
            {'param_scheduler.0.start_facter': 0.1},
            'param_scheduler.0.start_facter: LinearLR has no start_facter; '
            'did you mean start_factor?',
        ),
        (
            {'param_scheduler.0.end': -1},
            'param_scheduler: end should be larger than begin, but got begin=0, end=-1',
        ),
        (
            {'optim_wrapper.optimizer.lr': -1.0},
            'optim_wrapper: Invalid learning rate: -1.0',
        ),
        (
            {'train_cfg.val_intervall': 1},
            'train_cfg.val_intervall: EpochBasedTrainLoop has no val_intervall; '
            'did you mean val_interval?',
        ),
        (
            {'train_dataloader.batchsize': 1},
            'train_dataloader.batchsize: DataLoader has no batchsize; did you mean batch_size?',
        ),
        (
            {'train_dataloader.dataset.roots': 1},
            'train_dataloader.dataset.roots: Numbers has no roots; did you mean root?',
        ),
        (
            {'model.widht': 3},
            'model.widht: SmallModel has no widht; did you mean width?',
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_a_mistake_names_its_key(
    option: dict, line: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cfg = small_config(tmp_path_factory.mktemp('run'))
    cfg.merge_from_dict(option)
    with pytest.raises(ConfigError) as error:
        built(cfg)
    assert str(error.value) == line


def test_a_right_config_reaches_the_training(tmp_path) -> None:
    cfg = small_config(tmp_path)
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', interval=1, save_optimizer=False, by_epoch=True, max_keep_ckpts=1
    )
    cfg.optim_wrapper.update(
        clip_grad=dict(type='value', clip_value=1.0),
        paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'head': dict(lr_mult=2.0)}),
    )
    cfg.optim_wrapper.optimizer.weight_decay = 0.1
    with pytest.raises(pytest.fail.Exception, match='reached the training'):
        built(cfg)


def test_arguments_passed_on_to_parents_count_and_others_do_not() -> None:
    class Parent:
        def __init__(self, one: int, two: int = 2) -> None: ...

    class Passes(Parent):
        def __init__(self, three: int, **kwargs: int) -> None: ...

    class Keeps(Parent):
        def __init__(self, four: int) -> None: ...

    def function(five: int) -> None: ...

    assert arguments(Passes) == {'one', 'two', 'three'}
    assert arguments(Keeps) == {'four'}
    assert arguments(function) == {'five'}


@pytest.fixture
def channels(tmp_path) -> Callable[..., None]:
    """Build a model of a backbone with channels 12, 24, 36, 48 and parts that expect others."""

    def build(**model: dict) -> None:
        cfg = small_config(tmp_path)
        cfg.model.update(model)
        PortableRunner.from_cfg(cfg)

    return build


@pytest.mark.parametrize(
    ('part', 'given', 'expected'),
    [
        ('neck', dict(in_channels=[12, 24, 36, 40]), r'\[12, 24, 36, 40\].*\[12, 24, 36, 48\]'),
        ('neck', dict(in_channels=[12, 24, 36]), r'\[12, 24, 36\].*\[12, 24, 36, 48\]'),
        ('decode_head', dict(in_channels=24, in_index=2), '24.*36'),
        ('decode_head', dict(in_channels=[12, 48], in_index=[0, 2]), r'\[12, 48\].*\[12, 36\]'),
        ('auxiliary_head', [dict(in_channels=24, in_index=3)], '24.*48'),
        ('decode_head', dict(in_channels=[12, 24]), r'\[12, 24\].*\[12, 24, 36, 48\]'),
        ('panoptic_head', dict(in_channels=[12, 24]), r'\[12, 24\].*\[12, 24, 36, 48\]'),
    ],
)
def test_channels_that_do_not_fit_the_backbones(
    part: str, given: dict, expected: str, channels: Callable[..., None]
) -> None:
    with pytest.raises(ConfigError, match=rf'^model\.{part}\.in_channels=.*{expected}'):
        channels(**{part: given})


@pytest.mark.parametrize(
    'model',
    [
        dict(neck=dict(in_channels=[12, 24, 36, 48])),
        dict(neck=dict(in_channels=(12, 24, 36, 48)), decode_head=dict(in_channels=5, in_index=0)),
        dict(neck=[dict(in_channels=[12, 24, 36, 48]), dict(in_channels=[9, 9])]),
        dict(neck=dict(in_channels=48)),
        dict(neck=dict(other=1)),
        dict(decode_head=dict(in_channels=[12, 48], in_index=[0, -1])),
        dict(decode_head=dict(in_channels=48, in_index=-1)),
        dict(decode_head=dict(in_channels=1)),
        dict(panoptic_head=dict(in_channels=[12, 24, 36, 48])),
    ],
)
def test_channels_that_fit_or_cannot_be_told(model: dict, channels: Callable[..., None]) -> None:
    channels(**model)


@pytest.fixture
def rmt(tmp_path) -> Callable[..., None]:
    """Train a small RMT for a step; fails where a weight does not learn."""

    def train(**keys: object) -> None:
        runner = PortableRunner.from_cfg(small_config(tmp_path, batch=8, epochs=1, **keys))
        runner.model.backbone = RMT(arch=MINI)
        runner.model.forward = forward.__get__(runner.model)
        learning = set()
        for name, parameter in runner.model.backbone.named_parameters():
            parameter.register_hook(lambda _, name=name: learning.add(name))
        runner.train()
        assert learning == {name for name, _ in runner.model.backbone.named_parameters()}

    def forward(self, inputs: torch.Tensor, mode: str = 'tensor') -> dict:
        images = inputs[:, :1, None, None].expand(-1, 3, 32, 32)
        return dict(loss=sum(out.square().mean() for out in self.backbone(images)))

    return train


@pytest.mark.parametrize(
    'keys',
    [
        dict(activation_checkpointing=['backbone.layers.0', 'backbone.layers.3']),
        dict(activation_checkpointing='backbone.layers.1.blocks.0'),
        dict(efficient_conv_bn_eval='backbone.patch_embed'),
        pytest.param(dict(compile=dict(backend='eager')), marks=pytest.mark.slow),
        dict(compile=False),
    ],
    ids=str,
)
def test_what_mmengine_can_do_to_a_model_works_with_rmt(
    keys: dict, rmt: Callable[..., None]
) -> None:
    rmt(**keys)


@pytest.mark.parametrize(
    ('keys', 'line'),
    [
        (dict(activation_checkpointing=['backbone']), 'takes images, so nothing in it would learn'),
        (dict(activation_checkpointing='backbone.patch_embed.proj.0'), 'backbone.layers.0 to .3'),
        (dict(activation_checkpointing='backbone.layer.0'), 'did you mean backbone.layers.0'),
        (dict(efficient_conv_bn_eval=['bakbone']), 'did you mean backbone?'),
    ],
)
def test_parts_that_are_not_there_or_would_not_learn(
    keys: dict, line: str, rmt: Callable[..., None]
) -> None:
    with pytest.raises(ConfigError, match=line):
        rmt(**keys)
