"""Every way by which mmengine reads weights: safely, and completely or not at all."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import (
    BaseLoop,
    CheckpointLoader,
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    load_checkpoint,
)
from released_files import Detector, assert_holds, detector_file, headless_file
from torch import nn

from backbone.engine import loading
from backbone.engine.loading import StrictLoadHook
from backbone.weights.checkpoint import Checkpoint, CheckpointError

WEIGHTS = {'a': torch.arange(6.0).reshape(2, 3), 'b': torch.ones(4)}


class Evaluates:
    """Pickles as a call of eval."""

    def __init__(self, source='1'):
        self.source = source

    def __reduce__(self):
        return eval, (self.source,)


# --- every scheme of mmengine --------------------------------------------------------------------


def test_code_does_not_run_on_mmengines_own_path(tmp_path):
    path, marker = str(tmp_path / 'weights.pth'), tmp_path / 'it-ran'
    payload = Evaluates(f'open({str(marker)!r}, "w").close()')
    torch.save({'state_dict': WEIGHTS, 'x': payload}, path)
    with pytest.raises(CheckpointError, match='eval'):
        load_checkpoint(nn.Linear(2, 2), path)
    assert not marker.exists()


def test_every_scheme_of_mmengine_goes_through_here():
    for scheme, loader in CheckpointLoader._schemes.items():
        assert loader.__module__ == 'backbone.engine.loading', scheme


@pytest.fixture
def stores(tmp_path, monkeypatch):
    """Addresses, as of other models, by what is stored there."""
    torch.save({'state_dict': {f'backbone.{n}': t for n, t in WEIGHTS.items()}}, tmp_path / 'good')
    torch.save({'state_dict': WEIGHTS, 'x': Evaluates()}, tmp_path / 'bad')
    paths = {name: str(tmp_path / name) for name in ('good', 'bad')}

    class Store:
        def get(self, address):
            return (tmp_path / address.rsplit('/', 1)[1]).read_bytes()

    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    for look_up in ('get_torchvision_models', 'get_mmcls_models'):
        monkeypatch.setattr(loading, look_up, lambda: paths)
    monkeypatch.setattr(loading, 'get_external_models', lambda: {'good': 'good', 'bad': 'bad'})
    monkeypatch.setattr(loading, 'get_deprecated_model_names', lambda: {'old': 'good'})
    backends = {'petrel': Store()}
    monkeypatch.setattr(
        loading, 'get_file_backend', lambda _, backend_args: backends[backend_args['backend']]
    )


@pytest.mark.parametrize('store', [
    'torchvision://', 'modelzoo://', 'open-mmlab://', 'openmmlab://', 'mmcls://', 's3://bucket/',
    'x:s3://bucket/', 'petrel://bucket/',
])  # fmt: skip
def test_what_other_models_are_loaded_from_works_and_is_read_safely(store, stores):
    found = CheckpointLoader.load_checkpoint(f'{store}good')['state_dict']
    name = 'a' if store == 'mmcls://' else 'backbone.a'
    assert torch.equal(found[name], WEIGHTS['a'])
    there = CheckpointLoader.load_checkpoint(f'{store}good', map_location='meta')['state_dict']
    assert all(tensor.is_meta for tensor in there.values())
    with pytest.raises(CheckpointError, match='asks for eval'):
        CheckpointLoader.load_checkpoint(f'{store}bad')


def test_names_that_mmengine_does_not_know_are_refused(stores):
    assert CheckpointLoader.load_checkpoint('open-mmlab://old')
    for address in ('torchvision://none', 'open-mmlab://none', 'pavi://none'):
        with pytest.raises(CheckpointError, match=address):
            CheckpointLoader.load_checkpoint(address)


@pytest.mark.parametrize('variable', ['XDG_CACHE_HOME', 'HOME'])
def test_files_of_mmengines_own_lie_where_mmengine_puts_them(
    variable, stores, tmp_path, monkeypatch
):
    monkeypatch.delenv('MMENGINE_HOME')
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setenv(variable, str(tmp_path / 'elsewhere'))
    cache = tmp_path / 'elsewhere' / ('.cache' if variable == 'HOME' else '') / 'mmengine'
    cache.mkdir(parents=True)
    (tmp_path / 'good').rename(cache / 'good')
    assert CheckpointLoader.load_checkpoint('open-mmlab://good')['state_dict']


def test_mmengines_own_lists_are_still_found():
    assert get_external_models()
    assert get_mmcls_models()
    assert isinstance(get_deprecated_model_names(), dict)


def test_another_model_of_the_process_loads_as_before(tmp_path):
    """A part of its file, a file with more, a wrapped one: mmengine's leniency is its own."""
    torch.save({'state_dict': {'weight': torch.ones(2, 2), 'x': torch.ones(1)}}, tmp_path / 'a')
    torch.save({'module.bias': torch.ones(2)}, tmp_path / 'b')
    model = nn.Linear(2, 2)
    for name in 'ab':
        load_checkpoint(model, str(tmp_path / name))
    assert bool((model.weight == 1).all() and (model.bias == 1).all())


# --- the runner's hook ---------------------------------------------------------------------------


class TrainRunner:
    """What the hook reads of a runner."""

    def __init__(self, model, resume=False):
        self.cfg = SimpleNamespace(filename='my config.py')
        self.model = model
        self._resume = resume
        self._train_loop = BaseLoop.__new__(type('Loop', (BaseLoop,), {'run': None}))
        self.optim_wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.1))


class EvalRunner(TrainRunner):
    """The same in a test, where the training loop is never built."""

    def __init__(self, model):
        super().__init__(model)
        self._train_loop = {'type': 'Loop'}
        self.optim_wrapper = {'type': 'OptimWrapper'}


class EarlyStoppingEvalRunner(TrainRunner):
    """A test again, after a hook has asked for the training loop."""

    def __init__(self, model):
        super().__init__(model)
        self.optim_wrapper = {'type': 'OptimWrapper'}


def load_by_hook(runner, file, **options):
    """As mmengine does it: the hook, then load_state_dict with strict=False."""
    checkpoint = Checkpoint(file)
    checkpoint.source = 'released.pth'
    StrictLoadHook(**options).after_load_checkpoint(runner, checkpoint)
    runner.model.load_state_dict(checkpoint['state_dict'], strict=False)


@pytest.mark.parametrize('runner', [TrainRunner, EvalRunner, EarlyStoppingEvalRunner])
def test_a_released_detector_arrives_whole(runner):
    model = Detector()
    file = detector_file()
    load_by_hook(runner(model), file)
    assert_holds(model, file['state_dict'])


def test_a_wrapped_model_loads_the_same():
    model = Detector()

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = model

    MODEL_WRAPPERS.register_module(module=Wrapper, force=True)
    checkpoint = Checkpoint(detector_file())
    StrictLoadHook().after_load_checkpoint(EvalRunner(Wrapper()), checkpoint)
    assert checkpoint['state_dict'].keys() == model.state_dict().keys()


def test_only_a_training_that_begins_may_take_a_file_without_its_head():
    file = headless_file()
    model = Detector(2)
    load_by_hook(TrainRunner(model), dict(file))
    assert_holds(model, file['state_dict'], but='conv_seg')
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    state = dict(optimizer={}, param_schedulers=[], message_hub=hub, epoch=1, iter=1)
    for runner in (EvalRunner(Detector(2)), TrainRunner(Detector(2), resume=True)):
        with pytest.raises(CheckpointError, match='without the heads that the config needs'):
            load_by_hook(runner, {**file, **state})


@pytest.mark.parametrize('number', [2, 3])
def test_class_layers_are_left_out_where_the_classes_are_said_to_be_others(number, capsys):
    """Also where there are as many of them: they are others all the same."""
    model, file = Detector(number), detector_file(3)
    before = model.decode_head.conv_seg.weight.detach().clone()
    load_by_hook(TrainRunner(model), file, own_classes=True)
    assert_holds(model, file['state_dict'], but='conv_seg')
    assert torch.equal(model.decode_head.conv_seg.weight, before)
    assert 'start anew: decode_head.conv_seg.weight' in capsys.readouterr().out
    del file['state_dict']['neck.bias']
    with pytest.raises(CheckpointError, match=r'1 missing: neck\.bias'):
        load_by_hook(TrainRunner(model), file, own_classes=True)


@pytest.mark.parametrize('runner', [EvalRunner, EarlyStoppingEvalRunner])
def test_what_was_trained_is_tested_with_its_class_layers(runner):
    model, file = Detector(3), detector_file(3)
    load_by_hook(runner(model), file, own_classes=True)
    assert_holds(model, file['state_dict'])


def test_what_was_trained_is_resumed_with_its_class_layers():
    file = detector_file(3)
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    state = dict(optimizer={}, param_schedulers=[], message_hub=hub, epoch=1, iter=1)
    model = Detector(3)
    load_by_hook(TrainRunner(model, resume=True), {**file, **state}, own_classes=True)
    assert_holds(model, file['state_dict'])


def test_a_file_without_training_state_cannot_be_resumed():
    runner = TrainRunner(Detector(), resume=True)
    file = detector_file()
    del file['meta']['iter']
    with pytest.raises(CheckpointError, match=r'optimizer, param_schedulers, message_hub, iter\).*'
                       'cannot be resumed; to start from its weights use load_from'):  # fmt: skip
        load_by_hook(runner, file)


@pytest.mark.parametrize('wrong', [
    {'optimizer': 5}, {'epoch': 'x'}, {'iter': None}, {'message_hub': {'log_scalars': 5}},
    {'param_schedulers': 'x'},
])  # fmt: skip
def test_a_training_state_of_other_types_cannot_be_resumed(wrong):
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    state = dict(optimizer={}, param_schedulers=[], message_hub=hub, epoch=1, iter=1)
    file = detector_file()
    del file['meta']['epoch'], file['meta']['iter']
    load_by_hook(TrainRunner(Detector(), resume=True), {**file, **state})
    with pytest.raises(CheckpointError, match=f'no training state .*{next(iter(wrong))}'):
        load_by_hook(TrainRunner(Detector(), resume=True), {**file, **state, **wrong})


def test_the_advice_names_the_config_that_it_was_given_for():
    with pytest.raises(CheckpointError) as caught:
        load_by_hook(TrainRunner(Detector(2)), detector_file(3))
    command = "released.pth released_headless.pth --drop-head --config 'my config.py'; then train"
    assert command in str(caught.value)
    with pytest.raises(CheckpointError, match='give the config it was trained with'):
        load_by_hook(EvalRunner(Detector(2)), detector_file(3))
