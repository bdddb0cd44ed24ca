"""The commands of an installation: ``rmt-train`` is ``tools/train.py``.

``rmt_downstream.commands:NAME``, as pyproject.toml has it, runs the file of that name.
"""

import functools
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import rmt_downstream

_HERE = Path(rmt_downstream.__file__).resolve().parent
TOOLS = next(place for place in (_HERE / 'tools', _HERE.parent / 'tools') if place.is_dir())


def __getattr__(name: str) -> Callable[[], None]:
    for file, run in ((TOOLS / f'{name}.py', run_tool), (TOOLS / f'{name}.sh', run_script)):
        if file.is_file():
            return functools.partial(run, file)
    raise AttributeError(name)


def run_tool(file: Path) -> None:
    """What ``python FILE`` does, under the name by which it was called."""
    sys.path.insert(0, str(TOOLS))  # as Python does for a file that it runs
    from support import cli

    spec = importlib.util.spec_from_file_location(f'rmt_downstream.tools.{file.stem}', file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    # what --help shows
    module.__doc__ = re.sub(r'(?:python )?tools/(\w+)\.py', _command, module.__doc__)
    cli.run(module.main)


def _command(file: re.Match) -> str:
    return f'rmt-{file[1].replace("_", "-")}'


def run_script(file: Path) -> None:
    """A launcher, with the Python of this installation."""
    os.execvpe('bash', ['bash', str(file), *sys.argv[1:]], os.environ | {'PYTHON': sys.executable})
