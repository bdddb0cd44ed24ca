"""What the Triton kernels need on GPUs that are not here: registers, memory, instructions."""

import importlib.util
import json
import os
import sys

import pytest
from conftest import ROOT, run_command

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec('triton') is None, reason='the package triton is not installed'
)
MOST = {  # instructions for each score in half precision, of the first kernels that ran
    ('whole', 'forward'): 16.2,
    ('whole', 'query'): 16.8,
    ('whole', 'key'): 18.4,
    ('lines', 'forward'): 12.5,
    ('lines', 'query'): 12.5,
    ('lines', 'key'): 13.5,
}
SHARED = 99 * 1024  # what every card since 8.0 has for a block
ALL = (80, 86, 89, 90, 100, 120)


@pytest.mark.parametrize(
    ('capabilities', 'dtypes'),
    [
        ((80, 90, 100), ('float16',)),
        pytest.param((86, 89, 120), ('float16',), marks=pytest.mark.slow),
        pytest.param(ALL, ('bfloat16',), marks=pytest.mark.slow),
        pytest.param(ALL, ('tf32',), marks=pytest.mark.slow),
        pytest.param(ALL, ('float32',), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_kernels_fit_the_cards_and_spill_nothing(capabilities, dtypes, tmp_path):
    found = tmp_path / 'needs.json'
    done = run_command(
        *(sys.executable, 'tools/compile_kernels.py', '--json', found),
        *('--capabilities', *capabilities, '--dtypes', *dtypes),
        cwd=ROOT,
        PYTHONPATH=os.pathsep.join(sys.path),  # of this process, which sees the package
    )
    assert done.returncode == 0, done.stderr
    needs = json.loads(found.read_text())
    assert len(needs) == len(capabilities) * len(dtypes) * len(MOST)
    for need in needs:
        assert need['shared'] <= SHARED, need
        assert need['spills'] == 0, need
        if need['dtype'] in ('float16', 'bfloat16'):
            assert 0 < need['instructions'] <= MOST[need['kind'], need['kernel']], need
