"""Where this project lies: in its own folder, or in the package ``rmt_downstream`` of a wheel."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'
INSTALLED = not (ROOT / 'rmt_downstream').is_dir()
PACKAGES = ROOT.parent if INSTALLED else ROOT
"""The folder of the packages ``backbone`` and ``rmt_downstream``."""


def command(name: str) -> str:
    """How a user calls ``tools/NAME.py``."""
    return f'rmt-{name.replace("_", "-")}' if INSTALLED else f'python tools/{name}.py'
