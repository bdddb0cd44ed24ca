"""The kernels are compiled once, kept, and refuse what C++ cannot read."""

import subprocess

import pytest
import torch

from backbone.kernels import build


def test_kernels_are_compiled_once_and_kept(no_kernels, tmp_path):
    no_kernels('g++')
    assert build.available()
    (file,) = (tmp_path / 'rmt-downstream').iterdir()  # and nothing half written beside it
    made = file.stat().st_mtime_ns
    build.forget()
    assert build.problem() == ''
    assert file.stat().st_mtime_ns == made


def test_a_compiler_that_fails_is_asked_once(no_kernels, monkeypatch):
    no_kernels('no-such-compiler')
    asked, run = [], subprocess.run
    monkeypatch.setattr(subprocess, 'run', lambda *a, **k: asked.append(a) or run(*a, **k))
    assert "No such file or directory: 'no-such-compiler'" in build.problem()
    assert not build.available()
    assert len(asked) == 1


@pytest.mark.parametrize(
    ('tensor', 'told'),
    [
        (torch.zeros(1, 2, 3, 4, dtype=torch.float64), 'float64'),
        (torch.zeros(1, 2, 3, 4, dtype=torch.bfloat16), 'bfloat16'),
        (torch.zeros(1, 2, 3, 4, device='meta'), 'on meta'),
        (torch.zeros(1, 2, 3, 8)[..., ::2], 'with strides'),
    ],
    ids=['float64', 'bfloat16', 'meta', 'strided'],
)
def test_what_is_no_dense_array_of_floats_is_refused(tensor, told):
    with pytest.raises(ValueError, match=f'rmt_to_nchw: argument 0 .*{told}'):
        build.call('rmt_to_nchw', [tensor, torch.zeros(1, 4, 2, 3)], 1, 2, 3, 4)


def test_another_shape_is_named_with_both_sizes():
    with pytest.raises(ValueError, match=r'grad: \(2, 3\) wanted, not \(2, 4\)'):
        build.check_shapes(x=(torch.zeros(5), (5,)), grad=(torch.zeros(2, 4), (2, 3)))


def test_without_kernels_a_call_says_why(no_kernels):
    no_kernels('no-such-compiler')
    with pytest.raises(RuntimeError, match=r'rmt_to_nchw: needs a C\+\+ compiler'):
        build.call('rmt_to_nchw', [torch.zeros(1)] * 2, 1, 1, 1, 1)
