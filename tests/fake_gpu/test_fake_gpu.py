"""The network around the attention on a GPU, without one: devices, types and bytes of fake tensors.

A process of its own pretends a GPU (``pretend.py``) and runs a list of cases (``cases.py``).
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import unless_quick

from backbone import VARIANTS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MB = 2**20
SHAPE = [1, 3, 800, 1344]
ATTENTION = ['fused', 'triton']
DTYPES = ['float32', 'float16', 'bfloat16']

pytestmark = pytest.mark.skipif(
    torch.version.cuda is not None, reason='this PyTorch has CUDA: the real device is tested'
)


@functools.cache
def run(*cases: str) -> list[dict]:
    """The findings of cases, each as JSON."""
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', str(HERE / 'cases.py'), f'[{",".join(cases)}]'],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', 'TRITON_INTERPRET': '0'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not [each['error'] for each in found if 'error' in each], done.stderr
    return found


def case(attention, dtype='float16', arch='tiny', with_cp=False, training=True, shape=SHAPE):
    return json.dumps(
        dict(
            arch=arch,
            attention=attention,
            dtype=dtype,
            with_cp=with_cp,
            training=training,
            shape=shape,
        )
    )


def needs(attention):
    if attention == 'triton':
        pytest.importorskip('triton')


def check(found, training=True):
    for each in found:
        assert each['devices'] == ['cuda']
        assert not each['cpu_kernels']  # neither compiled nor looked for
        assert each['dtypes'] == ['torch.float32']  # of the output norms, under autocast too
        assert [s[2:] for s in each['shapes']] == [[200, 336], [100, 168], [50, 84], [25, 42]]
        if training:
            assert each['without_gradient'] == []


@pytest.mark.parametrize('attention', unless_quick(ATTENTION, lambda name: name != 'fused'))
def test_tiny_trains_in_half_precision_with_nothing_on_another_device(attention):
    needs(attention)
    check(run(case(attention)))


@pytest.mark.slow
@pytest.mark.parametrize('attention', ATTENTION)
@pytest.mark.parametrize('arch', VARIANTS)
def test_every_size_trains_and_infers_in_every_dtype(arch, attention):
    """Each mode in another dtype, another from size to size: every two of them meet."""
    needs(attention)
    modes = dict(training=False), dict(training=True), dict(training=True, with_cp=True)
    first = list(VARIANTS).index(arch) % len(DTYPES)
    dtypes = DTYPES[first:] + DTYPES[:first]
    cases = [case(attention, t, arch, **mode) for t, mode in zip(dtypes, modes, strict=True)]
    for mode, found in zip(modes, run(*cases), strict=True):
        check([found], mode['training'])


def test_triton_makes_no_large_tensor_and_keeps_little_for_the_backward_pass():
    needs('triton')
    (found,) = run(case('triton'))
    assert found['attention'][0] <= 64 * MB, found['attention']
    kept, own = (sum(column) for column in zip(*found['kept'], strict=True))
    assert own <= kept <= 1.2 * own


def test_fused_gives_pytorch_one_mask_in_half_precision():
    (found,) = run(case('fused'))
    assert 0 < found['masked'] <= 300 * MB


@pytest.mark.slow
@pytest.mark.parametrize('attention', ATTENTION)
@pytest.mark.parametrize('model', ['mask_rcnn', 'upernet'])
def test_whole_models_train_in_mixed_precision(model, attention):
    needs(attention)
    pytest.importorskip('mmdet' if model == 'mask_rcnn' else 'mmseg')
    (found,) = run(json.dumps(dict(model=model, attention=attention, dtype='float16')))
    assert found['devices'] == ['cuda']
    assert found['without_gradient'] == []
