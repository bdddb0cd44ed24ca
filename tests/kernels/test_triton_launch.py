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


# --- how places and strides are counted ---------------------------------------------------------

B, H, W, N, D = 2, 3, 5, 4, 16
LINES = {
    WHOLE: lambda places: places.flatten(1),
    ROWS: lambda places: places.flatten(0, 1),
    COLUMNS: lambda places: places.transpose(1, 2).flatten(0, 1),
}


@pytest.mark.parametrize('mode', MODES)
def test_lines_are_all_places_rows_or_columns(mode):
    lines = triton_launch.lines_of(mode, B, H, W)
    found = [
        [
            line // lines.inner * lines.outer + line % lines.inner * lines.across + i * lines.along
            for i in range(lines.length)
        ]
        for line in range(lines.count)
    ]
    assert found == LINES[mode](torch.arange(B * H * W).view(B, H, W)).tolist()


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('sizes', [(B, H, W), (1, H, W), (B, 1, W), (B, H, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize('order', [(0, 1, 2, 3, 4), (3, 0, 1, 2, 4), (0, 2, 1, 3, 4)], ids=str)
def test_strides_lead_to_every_number_of_a_tensor_in_any_order(order, sizes, mode):
    shape = *sizes, N, D
    stored = torch.arange(torch.Size(shape).numel()).view([shape[i] for i in order])
    t = triton_launch.readable(stored.permute([order.index(i) for i in range(5)]), mode)
    outer, inner, token, head = triton_launch.strides(t, mode)
    lines = triton_launch.lines_of(mode, *sizes)
    numbers = torch.as_strided(
        t,
        (lines.count // lines.inner, lines.inner, lines.length, N, D),
        (outer, inner, token, head, 1),
    )
    places = LINES[mode](torch.arange(t[..., 0, 0].numel()).view(sizes))
    assert torch.equal(numbers.flatten(0, 1), t.flatten(0, 2)[places])


def test_strides_are_counted_in_sixteens_where_all_can_be():
    assert triton_launch.unit_of(16) == triton_launch.unit_of(32, 64, 0, 48) == 16
    assert triton_launch.unit_of(24, 16) == triton_launch.unit_of(16, 16, 40) == 1


def test_a_line_takes_whole_pads():
    assert [
        triton_launch.pads(length)
        for length in (1, triton_attention.PAD, triton_attention.PAD + 1, 2 * triton_attention.PAD)
    ] == [1, 1, 2, 2]
