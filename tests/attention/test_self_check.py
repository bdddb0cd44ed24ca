"""``auto`` takes what is compiled where it runs only after it has shown the formula's results."""

import types

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from backbone import attention
from backbone.attention import IMPLEMENTATIONS, reference, self_check

CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def verdicts(monkeypatch):
    monkeypatch.setattr(self_check, '_verdicts', {})
    monkeypatch.delenv(self_check.SWITCH, raising=False)
    return self_check._verdicts


def problem(implementation, dtype=torch.float32, head_dim=16):
    return self_check.problem(implementation, CPU, dtype, head_dim)


def like_the_formula(attend=reference.attend):
    """An implementation that computes by ``attend``."""
    return types.SimpleNamespace(__name__='played', tables=reference.tables, attend=attend)


class Changed(torch.autograd.Function):
    """What it is given, with another gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.001


@pytest.mark.parametrize('name', [name for name in IMPLEMENTATIONS if name != 'flex'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_right_results_pass(name, dtype, monkeypatch):
    if name == 'triton':  # takes most of a minute on the whole grid, in an interpreter
        monkeypatch.setattr(self_check, 'GRID', (3, 23))
    reason = IMPLEMENTATIONS[name].supports(CPU, dtype, 16)
    if reason:
        pytest.skip(f'{name} on a CPU: {reason}')
    assert problem(IMPLEMENTATIONS[name], dtype) == ''


def test_wrong_results_in_rows_and_columns_alone_fail():
    def attend(q, k, v, tables, axial):
        out = reference.attend(q, k, v, tables, axial)
        return out * 1.001 if axial and q.dtype == torch.float32 else out

    told = problem(like_the_formula(attend))
    assert told.startswith('its self-check fails: the result along rows and columns is off by 1.0e')


def test_a_wrong_gradient_fails():
    def attend(q, k, v, tables, axial):
        k = Changed.apply(k) if k.dtype == torch.float32 else k
        return reference.attend(q, k, v, tables, axial)

    told = problem(like_the_formula(attend))
    assert 'the gradient of k everywhere is off by 1.0e-03' in told
    assert 'of q' not in told


def test_nan_fails():
    def attend(q, k, v, tables, axial):
        out = reference.attend(q, k, v, tables, axial)
        return out * torch.nan if q.dtype == torch.float32 else out

    assert 'off by nan' in problem(like_the_formula(attend))


def test_whatever_is_raised_is_a_reason_of_one_line():
    def attend(q, k, v, tables, axial):
        raise OSError('ptxas: no such card\nand much more')

    told = problem(like_the_formula(attend))
    assert told == 'its self-check fails: OSError: ptxas: no such card'


def test_it_runs_once_a_device_dtype_and_width():
    calls = []

    def attend(q, k, v, tables, axial):
        calls.append(axial)
        return reference.attend(q, k, v, tables, axial)

    for _ in range(3):
        problem(like_the_formula(attend))
    assert calls == [False, True]
    problem(like_the_formula(attend), torch.float16)
    problem(like_the_formula(attend), head_dim=32)
    assert len(calls) == 6


def test_the_users_random_numbers_and_modes_stay():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        assert problem(like_the_formula()) == ''
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled('cpu')
    assert torch.equal(torch.rand(2), expected)


def test_where_nothing_can_be_computed_there_is_no_verdict(verdicts):
    with FakeTensorMode():
        assert 'not checked yet' in problem(like_the_formula())
    assert not verdicts
    assert problem(like_the_formula()) == ''


@pytest.mark.parametrize('off', ['off', '0'])
def test_the_environment_switches_it_off(off, monkeypatch):
    monkeypatch.setenv(self_check.SWITCH, off)
    assert problem(like_the_formula()) == 'switched off by RMT_TRITON'


@pytest.fixture
def played(monkeypatch):
    """``auto`` that would take what computes by ``played.attend``."""
    module = like_the_formula()
    module.supports = lambda *_: ''
    monkeypatch.setitem(attention.IMPLEMENTATIONS, 'played', module)
    monkeypatch.setattr(attention, 'FASTEST', {'cpu': ('played', 'fused')})
    monkeypatch.setattr(attention, 'CHECKED', ('played',))
    monkeypatch.setattr(attention, '_told', set())
    return module


def test_auto_falls_back_with_one_warning_and_a_name_is_taken_as_it_is(played, monkeypatch):
    told = []
    monkeypatch.setattr(attention, 'print_log', lambda *line: told.append(line))
    played.attend = lambda q, k, v, *_: q + k + v
    for _ in range(2):
        assert attention.choose('auto', CPU, torch.float32, 16) == 'fused'
    ((line, _, level),) = told
    assert line.startswith('RMT attention on cpu: fused (played: its self-check fails: the result')
    assert level == attention.logging.WARNING
    assert attention.choose('played', CPU, torch.float32, 16) == 'played'


# --- under a compiler ----------------------------------------------------------------------------


@pytest.fixture
def compiled(played, monkeypatch):
    """Whether the graph of a stage with ``auto`` is the formula's, at two sizes; also what is told.

    ``played`` is the formula; what runs in its place, ``fused``, is PyTorch's own attention.
    """
    told = []
    monkeypatch.setattr(attention, 'FASTEST', {'cpu': ('kernel', 'played', 'fused')})
    monkeypatch.setattr(attention, 'ANY_SIZE', ('played', 'fused'))
    monkeypatch.setattr(attention, 'print_log', lambda *line: told.append(line[0]))
    stage = attention.StageAttention('auto', 1, 16, 4, axial=True)
    counter = CompileCounterWithBackend('eager')

    def attend(x):
        return stage.prepare(x.flatten(-2))(x, x, x)

    def run():
        torch._dynamo.reset()
        graph = torch.compile(attend, backend=counter, fullgraph=True, dynamic=True)
        for H, W in ((3, 5), (4, 2)):
            x = torch.randn(2, H, W, 1, 16)
            torch.testing.assert_close(graph(x), attend(x))
        (nodes,) = (graph.graph.nodes for graph in counter.graphs)
        return not any('scaled_dot_product' in str(node.target) for node in nodes), told

    yield run
    torch._dynamo.reset()


def test_a_compiler_that_traces_gets_what_passes_its_check(compiled, verdicts):
    assert compiled() == (True, ['RMT attention on cpu: played', 'RMT attention on cpu: kernel'])
    assert set(verdicts.values()) == {''}


def test_a_compiler_that_traces_gets_fused_where_the_check_fails(compiled, played):
    played.attend = lambda q, k, v, *_: q + k + v
    is_played, told = compiled()
    assert not is_played
    assert told[0].startswith('RMT attention on cpu: fused (played: its self-check fails')


def test_name_that_cannot_run_is_told_before_anything_is_compiled(played, monkeypatch):
    monkeypatch.setattr(attention, 'NAMES', (*attention.NAMES, 'played'))
    played.supports = lambda *_: 'the moon is full'
    stage = attention.StageAttention('played', 1, 16, 4, axial=True)
    graph = torch.compile(lambda x: stage.prepare(x), backend='eager')
    with pytest.raises(Exception, match="'played' cannot run here: the moon is full; use 'auto'"):
        graph(torch.randn(1, 3, 5, 16))
    torch._dynamo.reset()


@pytest.mark.parametrize('strict', [False, True])
def test_what_is_exported_is_fused_also_after_a_passed_check(played, strict):
    class Stage(torch.nn.Module):
        attention = attention.StageAttention('auto', 1, 16, 4, axial=True)

        def forward(self, x):
            return self.attention.prepare(x.flatten(-2))(x, x, x)

    x = torch.randn(1, 3, 5, 1, 16)
    Stage()(x)
    exported = torch.export.export(Stage(), (x,), strict=strict)
    assert 'scaled_dot_product' in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), Stage()(x))


def test_torch_without_a_word_for_exporting_serves_too(played, monkeypatch):
    monkeypatch.delattr(torch.compiler, 'is_exporting', raising=False)  # torch 2.6
    x = torch.randn(1, 3, 5, 1, 16)
    stage = attention.StageAttention('auto', 1, 16, 4, axial=True)
    assert stage.prepare(x.flatten(-2))(x, x, x).shape == x.shape
