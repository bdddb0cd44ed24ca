"""Every file in tools/ is a command that says how it is used."""

import runpy
import sys
from pathlib import Path

import pytest
from conftest import TOOLS, run_command

COMMANDS = sorted(path for path in TOOLS.iterdir() if path.is_file())


@pytest.mark.parametrize('path', COMMANDS, ids=lambda path: path.name)
def test_help_says_how_the_command_is_used(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if path.suffix == '.py':  # as a script, but in this process: what all import takes seconds
        monkeypatch.setattr(sys, 'argv', [str(path), '--help'])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name='__main__')
        assert not end.value.code
        said = capsys.readouterr().out
    else:
        done = run_command(path, '--help', cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        said = done.stdout
    first = said.splitlines()[0]
    assert first.startswith('usage: ')
    assert path.name in first
    assert not list(tmp_path.iterdir())
