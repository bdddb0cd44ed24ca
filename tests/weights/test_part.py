"""RMT itself refuses what does not fit it, whatever loads it and goes on without."""

import copy
import pickle

import pytest
import torch
from mmengine.model import BaseTTAModel, ExponentialMovingAverage, MMDistributedDataParallel
from mmengine.runner import load_checkpoint, load_state_dict
from released_files import (
    MINI,
    Detector,
    assert_holds,
    detector_file,
    imagenet_file,
    imagenet_weights,
    numbered,
)

import backbone.engine  # noqa: F401  puts the safe reader behind load_checkpoint
from backbone import RMT
from backbone.weights.checkpoint import CheckpointError

Q = 'backbone.layers.2.blocks.1.retention.q_proj.weight'
OTHER = dict(MINI, channels=(24, 32, 48, 64), heads=(3, 4, 6, 8))
WRONG = {
    'missing': (lambda w: w.pop(Q), r'the file is incomplete \(1 missing: layers\.2'),
    'misshapen': (lambda w: w.update({Q: w[Q][:-1]}), r'1 of another shape: .* \(31, 32\)'),
    'unexplained': (lambda w: w.update({f'{Q}x': w[Q]}), r'1 unexplained: layers\.2'),
    'integers': (lambda w: w.update({Q: w[Q].long()}), '1 of another type: layers'),
    'no tensor': (lambda w: w.update({Q: 5}), "is a int, where only weights"),
    'sparse': (lambda w: w.update({Q: w[Q].to_sparse()}), 'is not a plain dense tensor'),
    'other decay': (
        lambda w: w.update({'backbone.layers.1.Relpos.decay': torch.ones(3)}), 'another decay',
    ),
    'of another size': (
        lambda w: w.update({f'backbone.{n}': t for n, t in RMT(OTHER).state_dict().items()}),
        'these are RMT of custom size .* weights; the config builds RMT of custom size',
    ),
    'none of ours': (
        lambda w: [w.pop(n) for n in list(w) if n.startswith('backbone.')],
        'has no names where the model has its backbone',
    ),
}  # fmt: skip


def weights_of(model=None) -> dict:
    return numbered(model or Detector())


@pytest.mark.parametrize('name', WRONG)
def test_mmengines_lenient_loading_ends_in_one_line(name):
    spoil, words = WRONG[name]
    weights = weights_of()
    load_state_dict(Detector(), weights)
    spoil(weights)
    with pytest.raises(CheckpointError, match=f'the checkpoint: .*{words}'):
        load_state_dict(Detector(), weights)


class Tta(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        raise NotImplementedError


class WithTest(Detector):
    def test_step(self, data):
        raise NotImplementedError


WRAPPERS = {
    'bare': lambda model: model,
    'TTA': Tta,
    'copy': copy.deepcopy,
    'pickled': lambda model: pickle.loads(pickle.dumps(model)),
    'averaged': lambda model: ExponentialMovingAverage(model).module,
}


@pytest.mark.parametrize('wrap', WRAPPERS)
def test_whatever_the_model_is_wrapped_in(wrap):
    model = WRAPPERS[wrap](WithTest())
    weights = weights_of()
    load_state_dict(model, weights)
    assert_holds(getattr(model, 'module', model), weights)
    del weights[Q]
    with pytest.raises(CheckpointError, match='incomplete'):
        load_state_dict(model, weights)


def test_a_model_in_a_distributed_one(tmp_path):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    try:
        model = MMDistributedDataParallel(Detector())
        weights = weights_of()
        load_state_dict(model, weights)
        del weights[Q]
        with pytest.raises(CheckpointError, match='incomplete'):
            load_state_dict(model, weights)
    finally:
        torch.distributed.destroy_process_group()


def test_the_file_is_named_and_every_file_that_fits_is_taken(tmp_path):
    path = str(tmp_path / 'a file.pth')
    file = detector_file()
    torch.save(file, path)
    for indices in [(0, 1, 2, 3), (1, 3)]:
        model = Detector(out_indices=indices)
        load_checkpoint(model, path)
        assert_holds(model, file['state_dict'])
    del file['state_dict'][Q]
    torch.save(file, path)
    with pytest.raises(CheckpointError, match=r'a file\.pth: the file is incomplete'):
        load_checkpoint(Detector(), path)


@pytest.mark.parametrize(('content', 'words'), [
    (lambda: imagenet_file(RMT(MINI)), 'an ImageNet file is given as'),
    (lambda: imagenet_weights(RMT(MINI), token_label=True), 'an ImageNet file is given as'),
    (lambda: {'epoch': 1}, 'has no names where'),
])  # fmt: skip
def test_backbone_files_in_a_detectors_place_are_explained(content, words, tmp_path):
    torch.save(content(), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=rf'x\.pth: .*{words}'):
        load_checkpoint(Detector(), str(tmp_path / 'x.pth'))


def test_an_imagenet_file_given_to_mmengine_for_a_bare_backbone_is_explained():
    with pytest.raises(CheckpointError, match=r'an RMT of custom size .*goes in as init_cfg'):
        load_state_dict(RMT(MINI), imagenet_weights(RMT(MINI), token_label=False))


def test_counters_may_lack():
    weights = {n: t for n, t in weights_of().items() if 'num_batches' not in n}
    load_state_dict(Detector(), weights)


# --- what stays PyTorch's ------------------------------------------------------------------------


def test_ones_own_lenient_loading_stays_pytorchs():
    model, weights = Detector(), weights_of()
    del weights[Q]
    found = model.load_state_dict({**weights, 'backbone.x': torch.ones(1)}, strict=False)
    assert found.missing_keys == [Q]
    assert found.unexpected_keys == ['backbone.x']
    assert_holds(model, weights, but=Q)
    assert RMT(MINI).load_state_dict({}, strict=False).missing_keys


@pytest.mark.parametrize('assign', [False, True])
def test_ones_own_strict_loading_stays_pytorchs(assign):
    model, weights = Detector(), weights_of()
    model.load_state_dict(weights, assign=assign)
    assert_holds(model, weights)
    del weights[Q]
    weights['backbone.x'] = torch.ones(1)
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(weights, assign=assign)
    assert type(caught.value) is RuntimeError
    for words in (f'Missing key(s) in state_dict: "{Q}"', 'Unexpected key(s)', 'backbone.x'):
        assert words in str(caught.value)


def test_nothing_of_the_file_is_kept_in_the_model():
    model = Detector()
    model.load_state_dict(weights_of(), strict=False)
    assert model.backbone._loading is None
