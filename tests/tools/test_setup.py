"""tools/support/setup.sh with a stand-in for Python, and its progress line on a recorded build."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

# Answers what setup.sh asks of an interpreter, notes each pip call, and fails where FAIL says so.
FAKE_PYTHON = r"""#!/usr/bin/env bash
case "$1 $2" in
"-m venv") mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
"-m pip")
    shift 2
    [ "$1" = --version ] && exit 0
    [ "$1" = freeze ] && { grep -o 'onedl-mmcv==.*' "$CALLS" 2>/dev/null; exit 0; }
    [ "$1 $2" = "show -q" ] && exit 1
    echo "$*" >>"$CALLS"
    [ -n "$FAIL" ] && [[ "$*" == *"$FAIL"* ]] && { echo "ERROR: no luck" >&2; exit 1; }
    [ "$2" = -v ] && printf '  [1/4] c++ a\n  [4/4] c++ b\n'
    exit 0 ;;
"--version ") echo "Python 3.11.7" ;;
*importlib.metadata*) echo torchvision==0.28.0 ;;
*find_spec*) [ -n "$TRITON" ] ;;
"-c import torchvision") [ -z "$MISFIT" ] ;;
backbone/*) echo "$*" >>"$CALLS" ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files of the set-up, in a place of their own, and a stand-in for Python."""
    (tmp_path / 'tools/support').mkdir(parents=True)
    for name in ('tools/support/setup.sh', 'tools/support/build_progress.sh', 'pyproject.toml'):
        shutil.copy(ROOT / name, tmp_path / name)
    for path in ROOT.glob('requirements*.txt'):
        shutil.copy(path, tmp_path)
    fake = tmp_path / 'fake-python'
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    return tmp_path


@pytest.fixture
def setup(project: Path) -> Callable[..., subprocess.CompletedProcess]:
    def run(**env: str) -> subprocess.CompletedProcess:
        defaults = {'PYTHON': str(project / 'fake-python'), 'CALLS': str(project / 'calls')}
        return subprocess.run(
            [project / 'tools/support/setup.sh'],
            env={'PATH': os.environ['PATH'], 'CXX': 'sh', 'FAIL': '', **defaults, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


Setup = Callable[..., subprocess.CompletedProcess]


def calls(project: Path) -> list[str]:
    return (project / 'calls').read_text().splitlines()


def test_installs_torch_then_the_operators_then_the_rest(setup: Setup, project: Path) -> None:
    done = setup()
    assert done.returncode == 0, done.stderr
    torch, torchvision, mmcv, rest, ours = calls(project)
    assert torch == 'install -r requirements-build.txt torch==2.13.0'
    assert torchvision.strip() == 'install --no-deps torchvision==0.28.0'
    assert mmcv == 'install -v --no-deps --no-build-isolation onedl-mmcv==2.3.6'
    assert rest == 'install --no-deps --no-build-isolation -r requirements.txt'
    assert ours == 'install --no-deps --no-build-isolation --editable .'
    assert 'compiled 4 of 4' in done.stdout


def test_second_run_does_nothing(setup: Setup, project: Path) -> None:
    setup()
    before = calls(project)
    again = setup()
    assert (again.returncode, again.stdout) == (0, '')
    assert calls(project) == before


def test_operators_that_are_there_are_not_announced_again(setup: Setup, project: Path) -> None:
    setup(FAIL='--editable')
    again = setup()
    assert '2/4 onedl-mmcv==2.3.6 is there' in again.stdout
    assert 'min with' not in again.stdout


@pytest.mark.parametrize('step', ['torch', 'mmcv', '-r requirements.txt', '--editable'])
def test_run_that_failed_is_taken_up_again(step: str, setup: Setup, project: Path) -> None:
    failed = setup(FAIL=step)
    assert failed.returncode == 2
    assert 'ERROR: no luck' in failed.stderr
    assert 'setup.log' in failed.stderr.splitlines()[-1]
    (project / 'calls').unlink()
    assert setup().returncode == 0
    assert calls(project)[-1].endswith('--editable .')
    assert len(calls(project)) == 5


def test_another_torch_and_another_set(setup: Setup, project: Path) -> None:
    other = {'TORCH': 'torch==2.10.0', 'REQUIREMENTS': 'requirements-openmmlab.txt'}
    done = setup(**other, VENV='.venv-2')
    assert done.returncode == 0, done.stderr
    assert calls(project)[0].endswith('torch==2.10.0')
    assert calls(project)[2].endswith(' mmcv==2.1.0')


def test_torchvision_comes_from_where_torch_comes_from(setup: Setup, project: Path) -> None:
    setup(TORCH='torch==2.13.0 --index-url https://wheels/cpu')
    assert calls(project)[1].endswith(' torchvision==0.28.0 --index-url https://wheels/cpu')


def test_a_torchvision_of_ones_own_stays(setup: Setup, project: Path) -> None:
    setup(TORCH='torch==2.14.0 torchvision==0.29.1')
    assert calls(project)[0].endswith(' torch==2.14.0 torchvision==0.29.1')
    assert 'mmcv' in calls(project)[1]


def test_two_sets_do_not_mix_in_one_environment(setup: Setup, project: Path) -> None:
    setup()
    before = calls(project)
    done = setup(REQUIREMENTS='requirements-openmmlab.txt')
    assert done.returncode == 2
    assert 'holds the other package set' in done.stderr
    assert calls(project) == before


@pytest.mark.parametrize(('there', 'installed'), [('', True), ('yes', False)])
def test_tests_add_what_they_need_where_it_is_not(
    there: str, installed: bool, project: Path
) -> None:
    makefile = Path(shutil.copy(ROOT / 'Makefile', project))
    env = {'PATH': os.environ['PATH'], 'CXX': 'sh', 'FAIL': '', 'TRITON': there}
    env |= {'PYTHON': str(project / 'fake-python'), 'CALLS': str(project / 'calls')}
    subprocess.run(['make', 'test-setup'], cwd=project, env=env, check=True, timeout=60)
    recipe = makefile.read_text().partition('\ntest-setup:')[2].partition('\n\n')[0]
    files = re.findall(r'requirements-\S+\.txt', recipe)
    added = [f'install --quiet --no-deps -r {name}' for name in files]
    assert len(added) > 1
    assert (calls(project)[-len(added) :] == added) == installed
    assert 'triton==' in (project / 'requirements-test.txt').read_text()


@pytest.mark.parametrize(
    ('env', 'expected'),
    [
        ({'CXX': 'no-such-compiler'}, 'no C++ compiler: install g++'),
        ({'PYTHON': 'no-such-python'}, 'no-such-python is not a Python 3.10, 3.11 or 3.12'),
        ({'PYTHON': '/bin/false'}, '/bin/false is not a Python 3.10, 3.11 or 3.12'),
        ({'REQUIREMENTS': 'absent.txt'}, 'absent.txt: no such file'),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    env: dict, expected: str, setup: Setup, project: Path
) -> None:
    done = setup(**env)
    assert done.returncode == 2
    assert done.stderr.startswith('setup: error: ')
    assert expected in done.stderr
    assert done.stderr.count('\n') == 1
    assert not (project / 'calls').exists()


def test_no_python_at_all(setup: Setup, tmp_path: Path) -> None:
    """A PATH with the usual commands and no interpreter."""
    bin_dir = tmp_path / 'bin'
    bin_dir.mkdir()
    for name in ('bash', 'dirname', 'nproc', 'cat', 'sha256sum', 'cut', 'uname', 'env'):
        (bin_dir / name).symlink_to(shutil.which(name))
    done = setup(PYTHON='', PATH=str(bin_dir))
    assert done.returncode == 2
    assert 'no Python 3.10, 3.11 or 3.12 found' in done.stderr


def test_estimate_is_the_mean_of_the_steps_so_far() -> None:
    log = 'Building wheel for mmcv\n' + ''.join(
        f'  [{i}/120] c++ -MMD -MF build/{i}.o\n  note: [{i}] of something\n' for i in range(1, 31)
    )
    done = subprocess.run(
        ['bash', ROOT / 'tools/support/build_progress.sh'],
        input=log,
        env={**os.environ, 'ELAPSED': '120'},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == 'setup:     compiled 30 of 120, 2 min 00 s so far, about 6 min 00 s to go'
    assert len(lines) == 6  # one a 20th of the build


@pytest.mark.parametrize('misfit', ['', 'yes'])
def test_a_torchvision_that_does_not_import_is_helped(
    misfit: str, setup: Setup, project: Path
) -> None:
    assert setup(MISFIT=misfit).returncode == 0
    helped = 'backbone/engine/torchvision_import.py' in calls(project)
    assert helped == bool(misfit)
