"""What share of small faults in ``backbone/`` the tests notice (``make mutation``; not in CI).

A mutant is one change of one place: another operator, comparison or constant, a statement taken
out, two arguments exchanged. Texts for people (docstrings, messages, log lines) and annotations
stay. A sample, drawn by a fixed seed, is tried one by one in a copy of the tree: the tests of its
module run until the first that fails. One that none fails on has survived, and is printed; so is
one that the processor time did not suffice for: the share killed is never too high.
"""

import argparse
import ast
import difflib
import importlib.util
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

NAMED = {
    'attention/__init__': ['attention/test_attention', 'attention/test_self_check'],
    'engine/quiet': ['engine/test_runner'],
    'kernels/compiled': ['test_compile'],
    'kernels/triton_attention': ['attention/test_triton'],
    'kernels/triton_launch': ['attention/test_triton'],
    'kernels/triton_tiles': ['attention/test_triton', 'tools/test_compile_kernels'],
    'weights/causes': ['weights/test_match'],
    'weights/containers': ['weights/test_read', 'weights/test_unpickle'],
    'weights/names': ['weights/test_unpickle'],
    'weights/write': ['tools/test_convert_checkpoint'],
}
"""Tests of a module that do not bear its name."""

ALSO = {
    'rmt': ['test_architecture', 'weights/test_layout'],
    'layers': ['test_rmt', 'kernels/test_kernel_layers'],
    'attention': ['test_compile', 'test_rmt'],
    'kernels': ['attention/test_attention', 'attention/test_memory'],
    'weights': ['tools/test_convert_checkpoint', 'test_rmt'],
    'engine': ['tools/test_weights_in_tools', 'tools/test_train'],
}
"""Tests of a module or folder that stand elsewhere."""

LAST = ['test_attacks', 'test_mutated_files', 'test_followed', 'test_resume', 'test_distributed']
"""Tests of much at once, which take long."""

A_TEST = 60
"""Seconds of the processor within which every test ends; a mutant that waits longer is killed."""

SWAPPED = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult},
    **{ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
}


@dataclass(frozen=True, order=True)
class Mutant:
    """``new`` in the place of ``old``, which begins at a byte of a file."""

    file: str
    start: int
    old: str
    new: str

    def apply(self, source: str) -> str:
        data = source.encode()
        end = self.start + len(self.old.encode())
        assert data[self.start : end].decode() == self.old
        return (data[: self.start] + self.new.encode() + data[end:]).decode()


VERDICTS = {False: 'killed', True: 'SURVIVED', None: 'undecided'}

# --- the mutants of a file -----------------------------------------------------------------------


def mutants(file: str, source: str) -> list[Mutant]:
    """All of them, in a fixed order."""
    lines, starts = source.encode().splitlines(keepends=True), [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found = set()
    for node in to_change(ast.parse(source)):
        if not hasattr(node, 'lineno'):  # an operator: changed with what it stands in
            continue
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        old = source.encode()[start:end].decode()
        found |= {Mutant(file, start, old, new) for new in changes(node)}
    return sorted(found)


def to_change(node: ast.AST) -> Iterator[ast.AST]:
    """Its parts that compute something: no text for people, no types, no list of names."""
    for name, value in ast.iter_fields(node):
        if name in ('annotation', 'returns', 'decorator_list'):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not is_text(child):
                yield child
                yield from to_change(child)


def is_text(node: ast.AST) -> bool:
    if isinstance(node, ast.Assign):  # `make lint` reads it
        return ast.unparse(node.targets[0]) == '__all__'
    if isinstance(node, ast.Expr):  # a docstring, a call of its own
        return isinstance(node.value, ast.Constant) or is_text(node.value)
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        return name == 'print_log' or name.endswith(('Error', 'Warning', 'warn', 'extra_repr'))
    return isinstance(node, ast.JoinedStr)


def changes(node: ast.AST) -> Iterator[str]:
    """What stands in its place in each of its mutants."""
    match node:
        case ast.BinOp(left, op, right) if type(op) in SWAPPED:
            yield f'({ast.unparse(ast.BinOp(left, SWAPPED[type(op)](), right))})'
        case ast.AugAssign(target, op, value) if type(op) in SWAPPED:
            yield ast.unparse(ast.AugAssign(target, SWAPPED[type(op)](), value))
        case ast.Compare(left, [op], right) if type(op) in SWAPPED:
            yield f'({ast.unparse(ast.Compare(left, [SWAPPED[type(op)]()], right))})'
        case ast.BoolOp(op, values):
            yield f'({ast.unparse(ast.BoolOp(SWAPPED[type(op)](), values))})'
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield f'({ast.unparse(operand)})'
        case ast.Constant(bool() as value):
            yield str(not value)
        case ast.Constant(int() | float() as value):
            yield f'({value + 1})'
        case ast.Constant(str() as value) if value and ' ' not in value:
            yield repr(f'{value}x')
        case ast.IfExp(_, body, orelse):
            yield f'({ast.unparse(body)})'
            yield f'({ast.unparse(orelse)})'
        case ast.Call(ast.Name('isinstance' | 'hasattr' | 'getattr' | 'max' | 'min')):
            pass  # no test is needed to see these exchanged, or none can
        case ast.Call(function, [first, second, *rest], keywords) if not (
            isinstance(first, ast.Starred)
            or isinstance(second, ast.Starred)
            or ast.dump(first) == ast.dump(second)
        ):
            yield ast.unparse(ast.Call(function, [second, first, *rest], keywords))
        case ast.Return(value) if not (value is None or ast.unparse(value) == 'None'):
            yield 'return None'
    match node:
        case ast.Expr(ast.Call()) | ast.Raise() | ast.AugAssign() | ast.Delete():
            yield 'pass'
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield 'pass'


# --- a run ---------------------------------------------------------------------------------------


def tests_of(file: str, root: Path) -> list[str]:
    """Those of its name, those of its folder, others that use it; quickest to fail first."""
    parts = Path(file).with_suffix('').parts[1:]  # without backbone/
    name = parts[-1].strip('_')
    folder = root / 'tests' / Path(*parts[:-1])
    named = [*sorted(folder.glob(f'test_*{name}*.py')), *listed(NAMED.get('/'.join(parts)), root)]
    beside = sorted(folder.glob('test_*.py')) if parts[:-1] else []
    beside.sort(key=lambda test: test.stem in LAST)
    also = listed(ALSO.get(parts[0], ['test_rmt']), root)
    tests = dict.fromkeys(test for test in (*named, *beside, *also) if test.exists())
    return [str(test.relative_to(root)) for test in tests]


def listed(tests: list[str] | None, root: Path) -> list[Path]:
    return [root / 'tests' / f'{test}.py' for test in tests or ()]


def survives(mutant: Mutant, tree: Path, work: Path, limit: int) -> tuple[bool | None, str]:
    """Whether all tests pass, None where nobody knows; and what ended them.

    ``tree`` is afterwards as it was.
    """
    file = tree / mutant.file
    source = file.read_text()
    cache = work / 'cache'  # of compiled kernels: a mutant may spoil it
    shutil.copytree(work / 'clean-cache', cache)
    file.write_text(mutant.apply(source))
    try:
        status = run(tests_of(mutant.file, tree), tree, work, limit)
    finally:
        file.write_text(source)
        shutil.rmtree(cache)
    if status is None:
        return None, 'the tests wait for something'
    if status == -signal.SIGXCPU:
        return True, f'no test failed in {limit} s of the processor'
    if status == -signal.SIGPROF:
        return False, f'a test takes more than {A_TEST} s of the processor'
    lines = (work / 'output').read_text(errors='replace').splitlines()
    first = [line for line in lines if line.startswith(('FAILED', 'ERROR'))]
    return status == 0, first[0][:160] if first else f'exit status {status}'


class Watch:
    """A plugin of pytest: a test that takes much longer than any does ends the process."""

    def pytest_runtest_logstart(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, A_TEST)


def run(tests: list[str], tree: Path, work: Path, limit: int) -> int | None:
    """pytest's exit status, None where it does not end. A fork: the imports are made.

    The limit is of processor time: a machine that is busy kills no mutant.
    """
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        output = os.open(work / 'output', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(tree)
        path = os.pathsep.join(filter(None, [str(tree), os.environ.get('PYTHONPATH')]))
        cache = str(work / 'cache')
        os.environ.update(PYTHONPATH=path, XDG_CACHE_HOME=cache, PYTHONDONTWRITEBYTECODE='1')
        os.environ['PYTEST_XDIST_WORKER'] = 'gw0'  # tests/conftest.py: one thread
        sys.path.insert(0, str(tree))
        sys.dont_write_bytecode = True
        import pytest

        options = ['-x', '-q', '--no-header', '-p', 'no:cacheprovider', '--tb=no']
        os._exit(pytest.main([*options, f'--basetemp={work}/tmp', *tests], [Watch()]))
    until = time.monotonic() + 20 * limit
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def compile_kernels(tree: Path, cache: Path) -> None:
    """Once for all mutants, which change Python's code alone; or taken from where they are kept."""
    kept = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'rmt-downstream'
    cache.mkdir()
    if kept.is_dir():
        shutil.copytree(kept, cache / kept.name)
    code = 'from backbone.kernels import build; build.available()'
    environment = {**os.environ, 'XDG_CACHE_HOME': str(cache)}
    subprocess.run([sys.executable, '-c', code], cwd=tree, env=environment, check=True)


def import_what_is_slow() -> None:
    """In the parent, once: what the tests import, but for the tree itself."""
    # as tests/conftest.py has it; what follows may import Triton, which asks once
    os.environ.setdefault('TRITON_INTERPRET', '1')
    if importlib.util.find_spec('triton') is None:
        print('without triton: the tests of its kernels skip, and their mutants survive')
    import mmengine.runner  # noqa: F401
    import pytest  # noqa: F401
    import torch  # noqa: F401

    try:
        import mmdet.apis  # noqa: F401
        import mmseg.apis  # noqa: F401
    except ImportError as error:
        print(f'without {error.name}: the tests that need it fail for every mutant')


def shown(mutant: Mutant, source: str) -> str:
    lines = source.splitlines(), mutant.apply(source).splitlines()
    diff = list(difflib.unified_diff(*lines, n=0, lineterm=''))[3:]
    line = source.encode()[: mutant.start].count(b'\n') + 1
    return '\n'.join([f'{mutant.file}:{line}', *(f'    {text}' for text in diff)])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--root', type=Path, default=ROOT, help='the tree; default: this one')
    parser.add_argument('--sample', type=int, default=60, help='how many mutants')
    parser.add_argument('--seed', type=int, default=0, help='of the draw')
    parser.add_argument('--only', default='', help='a regular expression of files')
    parser.add_argument('--minutes', type=float, default=30, help='begin no mutant after that')
    parser.add_argument('--limit', type=int, default=300, help='seconds of the processor a mutant')
    parser.add_argument('--list', action='store_true', help='show the sample, run nothing')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    root = args.root.resolve()
    files = sorted(str(f.relative_to(root)) for f in (root / 'backbone').rglob('*.py'))
    files = [f for f in files if '_base_' not in f and re.search(args.only, f)]
    sources = {file: (root / file).read_text() for file in files}
    every = [mutant for file in files for mutant in mutants(file, sources[file])]
    drawn = random.Random(args.seed).sample(every, min(args.sample, len(every)))
    print(f'{len(every)} mutants in {len(files)} files, {len(drawn)} of them drawn', flush=True)
    if args.list:
        print('\n'.join(shown(mutant, sources[mutant.file]) for mutant in drawn))
        return 0
    import_what_is_slow()
    began, verdicts = time.monotonic(), dict.fromkeys(VERDICTS.values(), ())
    with tempfile.TemporaryDirectory(prefix='mutation-') as folder:
        work = Path(folder)
        tree = work / 'tree'
        shutil.copytree(root, tree, symlinks=True, ignore=shutil.ignore_patterns('.git', '.venv*'))
        compile_kernels(tree, work / 'clean-cache')
        for i, mutant in enumerate(drawn):
            if time.monotonic() - began > 60 * args.minutes:
                print(f'time is up: {len(drawn) - i} not tried')
                break
            survived, ended = survives(mutant, tree, work, args.limit)
            verdicts[VERDICTS[survived]] += (mutant,)
            place = shown(mutant, sources[mutant.file])
            print(f'{VERDICTS[survived]} {place}\n    {ended}', flush=True)
    killed, survivors, unknown = (len(each) for each in verdicts.values())
    print(f'\nkilled: {killed} of {killed + survivors}, {unknown} undecided. Survivors:')
    print('\n'.join(shown(mutant, sources[mutant.file]) for mutant in verdicts['SURVIVED']))
    return 0


if __name__ == '__main__':
    sys.exit(main())
