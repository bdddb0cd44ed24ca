"""Files that attack or do not fit, by the ways into mmdet, mmseg and mmengine that people use."""

import random
from collections import Counter

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mutations import assert_arrived, mutated_file
from released_files import MINI, MINI_RAVLT, downstream_file, numbered

from backbone.weights.checkpoint import CheckpointError
from backbone.weights.read import read_checkpoint, state_dict_in

SEEDS = [
    pytest.param(range(5), id='some'),
    pytest.param(range(5, 110), id='all', marks=pytest.mark.slow),
]
Q = 'backbone.layers.2.blocks.1.retention.q_proj.weight'


def mini(config: str) -> Config:
    """A config of ours whose model is built in no time."""
    cfg = Config.fromfile(ROOT / config)
    narrow = dict(in_channels=list(MINI['channels']), out_channels=8)
    cfg.model.backbone.arch = MINI
    cfg.model.neck.update(narrow)
    if 'bbox_head' in cfg.model:
        cfg.model.bbox_head.update(in_channels=8, feat_channels=8, stacked_convs=1, num_classes=2)
    else:
        cfg.model.decode_head.update(in_channels=[8] * 4, channels=8, num_classes=2)
    return cfg


@pytest.fixture(scope='module')
def configs():
    return {
        'mmdet': mini('det_configs/retinanet_rmt_t_fpn_1x_coco.py'),
        'mmseg': mini('seg_configs/fpn_rmt_t_80k_ade20k.py'),
    }


def init_detector(cfg, path):
    from mmdet.apis import init_detector

    return init_detector(cfg, path, device='cpu')


def det_inferencer(cfg, path):
    from mmdet.apis import DetInferencer

    return DetInferencer(cfg, path, device='cpu').model


def init_model(cfg, path):
    from mmseg.apis import init_model

    return init_model(cfg, path, device='cpu')


def seg_inferencer(cfg, path):
    from mmseg.apis import MMSegInferencer

    return MMSegInferencer(cfg, path, device='cpu').model


WAYS = {
    init_detector: 'mmdet',
    det_inferencer: 'mmdet',
    init_model: 'mmseg',
    seg_inferencer: 'mmseg',
}


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def way(request, configs):
    """(a function path -> model with its weights, an honest file's content)."""
    scope = WAYS[request.param]
    cfg = configs[scope]
    init_default_scope(scope)
    weights = numbered(MODELS.build(cfg.model))
    names = dict(classes=('one', 'two'), palette=[(1, 2, 3), (4, 5, 6)])
    meta = dict(dataset_meta=names, epoch=1, iter=2, seed=0)
    return lambda path: request.param(cfg.copy(), str(path)), dict(meta=meta, state_dict=weights)


def test_files_that_do_not_fit_are_refused_by_mmdets_and_mmsegs_own_ways(way, tmp_path):
    load, file = way
    path = tmp_path / 'a.pth'
    torch.save(file, path)
    weights = file['state_dict']
    assert all(torch.equal(t, weights[n]) for n, t in load(path).state_dict().items())
    torch.save({**file, 'state_dict': {n: t for n, t in weights.items() if n != Q}}, path)
    with pytest.raises(
        CheckpointError, match=r'a\.pth: the file is incomplete \(1 missing: layers'
    ):
        load(path)


@pytest.mark.parametrize('load', WAYS, ids=lambda way: way.__name__)
def test_a_file_of_another_family_is_refused_by_mmdets_and_mmsegs_own_ways(load, configs, tmp_path):
    scope, path = WAYS[load], tmp_path / 'a.pth'
    cfg = configs[scope].copy()
    cfg.model.backbone = dict(type='RAVLT', arch=MINI_RAVLT)
    init_default_scope(scope)
    model = MODELS.build(cfg.model)
    weights = numbered(model)
    file = downstream_file(model, weights, classes=('one', 'two'))
    file['meta']['PALETTE'] = [(1, 2, 3), (4, 5, 6)]
    file['meta']['config'] = "model = dict(backbone=dict(type='GLTA'))"
    torch.save(file, path)
    loaded = load(cfg.copy(), str(path)).state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.items())
    cfg.model.backbone.type = 'MAViT'
    with pytest.raises(CheckpointError, match=r'a\.pth: these are RAVLT .* builds MAViT'):
        load(cfg.copy(), str(path))


# --- code ----------------------------------------------------------------------------------------


def attacks(marker) -> list[str]:
    """Texts of configs that would leave ``marker``, run by Python or built by the registry."""
    return [
        f"model = dict(type='os.system', command='touch {marker}')",
        f"import os\nos.system('touch {marker}')",
        f'model = dict(type="builtins.exec", object="open({str(marker)!r}, \'w\')")',
        "custom_imports = dict(imports=['rmt_attack'])\nmodel = dict(type='RMT')",
        f"env_cfg = dict()\nvis_backends = __import__('pathlib').Path({str(marker)!r}).touch()",
    ]


@pytest.fixture
def attack_files(tmp_path, monkeypatch):
    """(files that carry the texts at every place, the marker)."""
    marker = tmp_path / 'it-ran'
    (tmp_path / 'rmt_attack.py').write_text(f'open({str(marker)!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    files = []
    for i, text in enumerate(attacks(marker)):
        hub = dict(log_scalars={}, resumed_keys={'cfg': True}, runtime_info={'cfg': text})
        for j, content in enumerate([
            dict(message_hub=hub, meta={}),
            dict(meta={'cfg': text, 'config': text}),
            dict(meta={'cfg': text, 'config': text, 'epoch': 1, 'iter': 1}, message_hub=hub),
        ]):  # fmt: skip
            files.append(tmp_path / f'{i}{j}.pth')
            torch.save({'state_dict': {'a': torch.ones(1)}, **content}, files[-1])
    return files, marker


def test_inferencers_without_a_config_run_none_of_a_file(attack_files):
    from mmdet.apis import DetInferencer
    from mmseg.apis import MMSegInferencer

    files, marker = attack_files
    for inferencer in (DetInferencer, MMSegInferencer):
        for file in files:
            with pytest.raises(ValueError, match=r'a config is needed|Cannot find the config'):
                inferencer(None, weights=str(file), device='cpu')
            assert not marker.exists(), file


def runner(cfg, tmp_path, **options) -> Runner:
    """mmengine's own, without our hooks: what a person's script has."""
    return Runner(
        model=cfg.model,
        work_dir=str(tmp_path),
        default_scope=cfg.default_scope,
        experiment_name='attack',
        cfg=Config(dict(model=cfg.model)),
        **options,
    )


@pytest.mark.parametrize('resume', [True, False])
def test_a_plain_runner_runs_none_of_a_file_and_takes_no_part_of_one(
    resume, attack_files, configs, tmp_path
):
    files, marker = attack_files
    for i, file in enumerate(files):
        made = runner(configs['mmseg'], tmp_path, load_from=str(file), resume=resume)
        made._experiment_name = f'attack{i}'
        with pytest.raises(CheckpointError, match='has no names where the model has its backbone'):
            made.resume(str(file)) if resume else made.load_or_resume()
        assert not marker.exists(), file


def test_a_plain_runner_loads_what_fits(configs, tmp_path):
    made = runner(configs['mmseg'], tmp_path / 'work', load_from=str(tmp_path / 'a.pth'))
    weights = numbered(made.model)
    torch.save({'state_dict': weights}, tmp_path / 'a.pth')
    made.load_or_resume()
    assert all(torch.equal(t, weights[n]) for n, t in made.model.state_dict().items())


# --- mutated files -------------------------------------------------------------------------------


@pytest.mark.parametrize('seeds', SEEDS)
def test_mutated_files_run_nothing_and_leave_nothing_out(way, seeds, tmp_path):
    load, file = way
    path, marker = tmp_path / 'weights.pth', tmp_path / 'it-ran'
    outcomes = Counter()
    for seed in seeds:
        what, content = mutated_file(file, random.Random(seed), marker)
        path.write_bytes(content)
        try:
            model = load(path)
        except CheckpointError:  # anything else is a failure
            outcomes[f'{what} refused'] += 1
        else:
            given = state_dict_in(read_checkpoint(path), str(path))
            ours = {n: t for n, t in model.state_dict().items() if n.startswith('backbone.')}
            assert_arrived(ours, given)
            outcomes[f'{what} taken'] += 1
        assert not marker.exists(), seed
    print(dict(outcomes))
