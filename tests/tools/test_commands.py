"""Every file in tools/ is a command that says how it is used."""

import sys
from pathlib import Path

import pytest
from conftest import TOOLS, run_command

COMMANDS = sorted(path for path in TOOLS.iterdir() if path.is_file())


@pytest.mark.parametrize('path', COMMANDS, ids=lambda path: path.name)
def test_help_says_how_the_command_is_used(path: Path, tmp_path: Path) -> None:
    interpreter = [sys.executable, '-W', 'ignore'] if path.suffix == '.py' else []
    done = run_command(*interpreter, path, '--help', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert first.startswith('usage: ')
    assert path.name in first
    assert not list(tmp_path.iterdir())
