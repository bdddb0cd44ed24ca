"""How the Triton kernels are launched: where, over which grid, on whose memory. None runs."""

import inspect
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

pytest.importorskip('triton')
from backbone.attention import decay_rates, triton
from backbone.kernels import triton_attention, triton_launch
from backbone.kernels.triton_tiles import COLUMNS, ROWS, WHOLE

KERNELS = ('turn_kernel', 'forward_kernel', 'query_kernel', 'key_kernel')
MODES = (WHOLE, ROWS, COLUMNS)


class Launch(NamedTuple):
    kernel: str
    grid: tuple[int, ...]
    devices: list[torch.device]
    arguments: dict
    constants: dict


@pytest.fixture
def launches(monkeypatch):
    """Every launch, with the devices it was made under."""
    made, devices = [], []

    @contextmanager
    def on(device):
        devices.append(device)
        yield
        devices.pop()

    class Kernel:
        def __init__(self, name):
            self.name = name
            self.names = list(inspect.signature(getattr(triton_attention, name).fn).parameters)

        def __getitem__(self, grid):
            return lambda *arguments, **constants: made.append(
                Launch(
                    self.name,
                    grid,
                    [*devices],
                    dict(zip(self.names, arguments, strict=False)),
                    constants,
                )
            )

    monkeypatch.setattr(triton_launch, '_on', on)
    for name in KERNELS:
        monkeypatch.setattr(triton_attention, name, Kernel(name))
    return made


def both_directions(shape, axial, qkv=None, grad=None):
    _, H, W, n, d = shape
    q, k, v = qkv or torch.zeros(3, *shape)
    tables = triton.tables(d, decay_rates(n, 4), H, W, axial, torch.float32)
    out, turned, between, sums = triton.attention(q, k, v, *tables, axial)
    grad = out if grad is None else grad
    triton.attention_backward(grad, v, out, turned, between, sums, *tables, axial)


@pytest.mark.parametrize('axial', [False, True])
def test_each_launch_is_of_one_dimension_under_the_tensors_own_device(axial, launches):
    both_directions((2, 3, 70, 2, 16), axial)
    assert {each.kernel for each in launches} == set(KERNELS)
    for each in launches:
        (programs,) = each.grid  # the others end at 65535
        assert programs > 0
        assert each.devices == [torch.device('cpu')]


def test_launch_on_another_gpu_than_the_current_one_switches_to_it():
    assert triton_launch._on(torch.device('cuda', 1)).idx == 1


@pytest.mark.parametrize('axial', [False, True])
def test_nothing_is_compiled_anew_from_size_to_size(axial, launches):
    sizes = (1, 1, 1, 2, 16), (3, 5, 77, 2, 16), (2, 128, 16, 4, 16)
    compiled = []
    for shape in sizes:
        launches.clear()
        both_directions(shape, axial)
        compiled.append([(each.kernel, each.constants) for each in launches])
        for each in launches:
            numbers = {name for name, value in each.arguments.items() if isinstance(value, int)}
            assert numbers <= set(triton_attention.SIZES)
    assert compiled[0] == compiled[1] == compiled[2]


@pytest.mark.parametrize('axial', [False, True])
def test_views_of_one_tensor_are_read_where_they_lie(axial, launches):
    shape = (2, 3, 5, 2, 16)
    joint = torch.zeros(2, 3, 5, 2, 4, 16)  # queries, keys, values and a gradient of each head
    q, k, v, grad = joint.unbind(-2)
    both_directions(shape, axial, (q, k, v), grad)
    for kernel, given in (
        ('turn_kernel', dict(Q=q, K=k)),
        ('forward_kernel', dict(V=v)),
        ('query_kernel', dict(GRAD=grad)),
    ):
        first = next(each for each in launches if each.kernel == kernel)
        for name, t in given.items():
            assert first.arguments[name].data_ptr() == t.data_ptr()


@pytest.mark.parametrize('mode', MODES)
def test_strides_that_no_kernel_follows_are_copied_and_others_not(mode):
    t = torch.zeros(2, 3, 5, 2, 16)
    assert triton_launch.readable(t, mode) is t
    other = t.transpose(1, 2)
    assert (triton_launch.readable(other, mode) is other) == (mode != WHOLE)
    other = t.transpose(3, 4)
    assert triton_launch.readable(other, mode).stride(-1) == 1


def test_nothing_is_summed_by_atomics_whose_order_is_chance():
    assert 'tl.atomic' not in Path(triton_attention.__file__).read_text()
