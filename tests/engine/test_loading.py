"""Every way by which mmengine reads weights: safely, and completely or not at all."""

import functools
import http.server
import threading

import pytest
import torch
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import BaseLoop, CheckpointLoader, load_checkpoint
from released_files import Detector, assert_holds, detector_file, headless_file
from torch import nn

from backbone.engine.loading import StrictLoadHook
from backbone.weights.read import Checkpoint, CheckpointError

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


@pytest.mark.parametrize('address', ['torchvision://resnet50', 's3://bucket/a.pth', 'x:s3://b/a'])
def test_stores_are_refused(address):
    with pytest.raises(CheckpointError, match='download the file'):
        CheckpointLoader.load_checkpoint(address)


def test_a_download_is_read_by_the_same_rule(tmp_path, monkeypatch):
    served = tmp_path / 'served'
    served.mkdir()
    torch.save({'state_dict': WEIGHTS}, served / 'good.pth')
    torch.save({'state_dict': WEIGHTS, 'x': Evaluates()}, served / 'bad.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}'
        good = CheckpointLoader.load_checkpoint(f'{address}/good.pth?download=1')
        with pytest.raises(CheckpointError, match='asks for eval'):
            CheckpointLoader.load_checkpoint(f'{address}/bad.pth')
        with pytest.raises(CheckpointError, match=r'none\.pth: download failed .*404'):
            CheckpointLoader.load_checkpoint(f'{address}/none.pth')
        server.shutdown()
    assert torch.equal(good['state_dict']['a'], WEIGHTS['a'])


# --- the runner's hook ---------------------------------------------------------------------------


class TrainRunner:
    """What the hook reads of a runner."""

    def __init__(self, model, resume=False):
        self.model = model
        self._resume = resume
        self._train_loop = BaseLoop.__new__(type('Loop', (BaseLoop,), {'run': None}))


class EvalRunner(TrainRunner):
    """The same in a test, where the training loop is never built."""

    def __init__(self, model):
        super().__init__(model)
        self._train_loop = {'type': 'Loop'}


def load_by_hook(runner, file):
    """As mmengine does it: the hook, then load_state_dict with strict=False."""
    checkpoint = Checkpoint(file)
    checkpoint.source = 'released.pth'
    StrictLoadHook().after_load_checkpoint(runner, checkpoint)
    runner.model.load_state_dict(checkpoint['state_dict'], strict=False)


@pytest.mark.parametrize('runner', [TrainRunner, EvalRunner])
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
    state = dict(optimizer={}, param_schedulers=[], message_hub={}, epoch=1, iter=1)
    for runner in (EvalRunner(Detector(2)), TrainRunner(Detector(2), resume=True)):
        with pytest.raises(CheckpointError, match='without the heads that the config needs'):
            load_by_hook(runner, {**file, **state})


def test_a_file_without_training_state_cannot_be_resumed():
    runner = TrainRunner(Detector(), resume=True)
    file = detector_file()
    del file['meta']['iter']
    with pytest.raises(CheckpointError, match=r'optimizer, param_schedulers, message_hub, iter\).*'
                       'cannot be resumed; to start from its weights use load_from'):  # fmt: skip
        load_by_hook(runner, file)
