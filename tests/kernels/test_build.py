"""The kernels are compiled once, kept where nobody else writes, and refuse what C++ cannot read."""

import os
import stat
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from released_files import MINI
from torch._subclasses.fake_tensor import FakeTensorMode

import backbone
from backbone import RMT, attention
from backbone.attention import cpu
from backbone.kernels import build


@pytest.fixture
def small(no_kernels, monkeypatch, tmp_path):
    """As ``no_kernels``, with a source that compiles at once."""
    source = tmp_path / 'small.cpp'
    source.write_text('\n'.join(f'extern "C" long {f}() {{ return 0; }}' for f in SCRATCH))
    monkeypatch.setattr(build, 'SOURCES', [source])
    monkeypatch.setattr(build, 'FLAGS', ('-fPIC',))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'tmp'))
    (tmp_path / 'tmp').mkdir()
    no_kernels('g++')
    return tmp_path


SCRATCH = build.SCRATCH.values()


def script(path: Path, text: str) -> str:
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)
    return str(path)


def again() -> str:
    build.forget()
    return build.problem()


def compiled(folder: Path) -> list[Path]:
    return sorted(folder.rglob('kernel-*.so'))


# --- the compiler --------------------------------------------------------------------------------


def test_kernels_are_compiled_once_and_kept(small):
    assert build.available()
    (file,) = (small / 'rmt-downstream').iterdir()  # and nothing half written beside it
    made = file.stat().st_mtime_ns
    assert again() == ''
    assert file.stat().st_mtime_ns == made


def test_a_compiler_that_fails_is_asked_once(no_kernels, monkeypatch):
    no_kernels('no-such-compiler')
    asked, run = [], subprocess.run
    monkeypatch.setattr(subprocess, 'run', lambda *a, **k: asked.append(a) or run(*a, **k))
    assert "No such file or directory: 'no-such-compiler'" in build.problem()
    assert not build.available()
    assert len(asked) == 1


@pytest.mark.parametrize('command', ['', 'env A=B g++', 'g++ -O0 -DNAME="two words"'])
def test_cxx_may_be_empty_a_wrapper_or_have_flags(small, monkeypatch, command):
    monkeypatch.setenv('CXX', command)
    assert again() == ''


def test_cxx_with_an_open_quote_is_named(small, monkeypatch):
    monkeypatch.setenv('CXX', 'g++ "-O0')
    assert again() == 'CXX=g++ "-O0: No closing quotation'


def test_clang_is_refused_by_name(small, monkeypatch):
    clang = script(small / 'c++', 'echo Apple clang version 14.0.6')
    monkeypatch.setenv('CXX', clang)
    assert again().startswith(f'needs g++: {clang} is clang')
    assert again().endswith('set CXX=g++')


def test_other_flags_make_another_file(small, monkeypatch):
    for flags in ('', '-O1', '-O2', '-O1'):
        monkeypatch.setenv(build.EXTRA_FLAGS, flags)
        assert again() == ''
    files = compiled(small)
    assert len(files) == 3
    assert {file.parent for file in files} == {small / 'rmt-downstream'}


def test_another_source_compiler_or_processor_makes_another_file(small, monkeypatch):
    names = {build._fingerprint(['g++'], [])}
    for name, value in (('FLAGS', ('-O1',)), ('SOURCES', [Path(__file__)])):
        with monkeypatch.context() as patch:
            patch.setattr(build, name, value)
            names.add(build._fingerprint(['g++'], []))
    names.add(build._fingerprint([script(small / 'c++', 'echo g++ 99')], []))
    for name, value in (('machine', lambda: 'vax'),):
        with monkeypatch.context() as patch:
            patch.setattr(build.platform, name, value)
            names.add(build._fingerprint(['g++'], []))
    with monkeypatch.context() as patch:
        patch.setattr(torch, '__version__', '99')
        names.add(build._fingerprint(['g++'], []))
    read = Path.read_text
    monkeypatch.setattr(
        Path, 'read_text', lambda p: 'flags: new' if p.name == 'cpuinfo' else read(p)
    )
    names.add(build._fingerprint(['g++'], []))
    assert len(names) == 7


def test_disk_that_is_full_is_one_line_and_leaves_nothing(small, monkeypatch):
    full = 'echo warning: note >&2; echo "as: fatal error: x.o: No space left on device" >&2'
    compiler = script(small / 'c++', f'[ "$1" = --version ] || {{ touch x.o; {full}; exit 1; }}')
    monkeypatch.setenv('CXX', compiler)
    told = again()
    assert told.startswith(f'{compiler} cannot compile the kernels into {small / "rmt-downstream"}')
    assert told.endswith(': as: fatal error: x.o: No space left on device')
    assert not list((small / 'rmt-downstream').iterdir())


def test_two_may_compile_at_once(small):
    (small / 'rmt-downstream').mkdir(mode=0o700)
    target, failed = small / 'rmt-downstream' / 'kernel-x.so', []

    def work():
        try:
            build._compile(['g++'], [], target)
        except build.NoKernels as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failed
    assert list(target.parent.iterdir()) == [target]


# --- where the compiled file is ------------------------------------------------------------------


def test_what_is_kept_nobody_else_can_write(small):
    old = os.umask(0)
    try:
        assert again() == ''
    finally:
        os.umask(old)
    (file,) = compiled(small)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (file.parent, file)] == [0o700, 0o700]


@pytest.fixture
def nowhere(small, monkeypatch):
    """A cache that cannot be written: a file stands where its folder should."""
    (small / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(small / 'file'))
    return small


def test_without_a_cache_one_folder_of_the_user_serves_all_processes(nowhere):
    assert again() == ''
    (file,) = compiled(nowhere / 'tmp')
    assert file.parent == nowhere / 'tmp' / f'rmt-downstream-{os.geteuid()}'
    made = file.stat().st_mtime_ns
    assert again() == ''
    assert compiled(nowhere / 'tmp') == [file]
    assert file.stat().st_mtime_ns == made


def test_without_a_home_the_folder_for_temporary_files_serves(small, monkeypatch):
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)  # as where no user has this id
    assert again() == ''
    assert compiled(small / 'tmp')
    assert not Path('~').exists()


def of_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        monkeypatch.setattr(os, 'geteuid', lambda: 12345)


def written_by_others(path: Path, _: pytest.MonkeyPatch) -> None:
    path.chmod(0o777)


def a_link(path: Path, _: pytest.MonkeyPatch) -> None:
    path.rename(path.with_name('elsewhere'))
    path.symlink_to(path.with_name('elsewhere'))


@pytest.mark.parametrize('planted', [of_another_user, written_by_others, a_link])
@pytest.mark.parametrize('place', ['file', 'folder'])
def test_a_planted_file_is_not_loaded(nowhere, monkeypatch, place, planted):
    assert again() == ''
    (file,) = compiled(nowhere / 'tmp')
    file.unlink()  # it is loaded
    file.write_bytes(b'code of somebody else')
    planted(file if place == 'file' else file.parent, monkeypatch)
    if (place, planted) == ('folder', written_by_others):
        file.chmod(0o777)  # the folder is ours, and taken back: what was put there is not
    assert again() == ''


def test_a_folder_that_cannot_be_had_is_replaced_for_this_process(nowhere, monkeypatch):
    removed = []
    monkeypatch.setattr(build.atexit, 'register', lambda *args, **_: removed.append(args[1]))
    (nowhere / 'tmp' / f'rmt-downstream-{os.geteuid()}').touch()
    assert again() == ''
    (file,) = compiled(nowhere / 'tmp')
    assert removed == [file.parent]


# --- what goes in --------------------------------------------------------------------------------


def test_only_call_takes_addresses():
    package = Path(backbone.__file__).parent
    uses = [p.name for p in package.rglob('*.py') if 'data_ptr' in p.read_text()]
    assert uses == ['build.py']


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.zeros(1, 2, 3, 4)


@pytest.mark.parametrize(
    ('tensor', 'told'),
    [
        (torch.zeros(1, 2, 3, 4, dtype=torch.float64), 'float64'),
        (torch.zeros(1, 2, 3, 4, dtype=torch.bfloat16), 'bfloat16'),
        (torch.zeros(1, 2, 3, 4, device='meta'), 'on meta'),
        (torch.zeros(1, 2, 3, 8)[..., ::2], 'with strides'),
        (torch.zeros(1, 2, 3, 4).to_sparse(), 'sparse_coo'),
        (fake(), 'without storage'),
        (torch._neg_view(torch.zeros(1, 2, 3, 4)), 'a view to be negated'),
    ],
    ids=['float64', 'bfloat16', 'meta', 'strided', 'sparse', 'fake', 'negated'],
)
@pytest.mark.filterwarnings('ignore:Accessing the data pointer of FakeTensor')
def test_what_is_no_dense_array_of_floats_is_refused(tensor, told):
    with pytest.raises(ValueError, match=f'rmt_to_nchw: argument 0 .*{told}'):
        build.call('rmt_to_nchw', [tensor, torch.zeros(1, 4, 2, 3)], 1, 2, 3, 4)


@pytest.mark.parametrize('device', ['meta', 'cuda'])
def test_operators_on_tensors_without_storage_run_and_compile_nothing(device, no_kernels, tmp_path):
    no_kernels('g++')
    with FakeTensorMode():
        q = torch.zeros(1, 4, 6, 2, 8, device=device)
        cos, rates = q.new_zeros(4, 6, 16), q.new_zeros(2)
        out, lse = torch.ops.rmt.attention(q, q, q, cos, cos, rates, 0)
        grads = torch.ops.rmt.attention_backward(q, q, q, cos, cos, rates, out, lse, out, 0)
    assert {t.device.type for t in (out, lse, *grads)} == {device}
    assert [t.shape for t in (out, *grads)] == 4 * [q.shape]
    assert lse.shape == (4 * 6 * 2,)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('training', [False, True])
def test_a_model_that_lives_elsewhere_compiles_nothing_and_does_not_speak_of_it(
    training, no_kernels, monkeypatch
):
    no_kernels('no-such-compiler')
    told = []
    monkeypatch.setattr(attention, '_told', set())
    monkeypatch.setattr(attention, 'print_log', lambda text, *_: told.append(text))
    model = RMT(MINI).train(training).to('meta')
    with torch.set_grad_enabled(training):
        features = model(torch.zeros(2, 3, 64, 64, device='meta'))
        if training:
            sum(f.sum() for f in features).backward()
    attention.choose('auto', torch.device('cuda', 0), torch.float16, 16)
    assert not build._problem  # nobody has asked
    assert len(told) == 2
    assert not [line for line in told if 'kernel' in line]


@pytest.mark.parametrize('mode', [0, 1, 2])
def test_an_empty_batch_has_an_empty_result(mode):
    q = torch.zeros(0, 4, 6, 2, 8, requires_grad=True)
    cos, sin, rates = cpu.tables(8, torch.zeros(2), 4, 6, True, torch.float32)
    out, _ = cpu.attention(q, q, q, cos, sin, rates, mode)
    out.sum().backward()
    assert out.shape == q.grad.shape == q.shape


def test_another_shape_is_named_with_both_sizes():
    with pytest.raises(ValueError, match=r'grad: \(2, 3\) wanted, not \(2, 4\)'):
        build.check_shapes(x=(torch.zeros(5), (5,)), grad=(torch.zeros(2, 4), (2, 3)))


def test_without_kernels_a_call_says_why(no_kernels):
    no_kernels('no-such-compiler')
    with pytest.raises(RuntimeError, match=r'rmt_to_nchw: needs a C\+\+ compiler'):
        build.call('rmt_to_nchw', [torch.zeros(1)] * 2, 1, 1, 1, 1)


def test_the_kernels_have_no_memory_but_what_they_are_handed():
    assert build.available()
    symbols = subprocess.run(
        ['nm', '-D', '--undefined-only', build._library._name],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert 'omp' in symbols
    assert not [word for word in ('alloc', 'memalign', '_Znwm', '_Znam', 'mmap') if word in symbols]
