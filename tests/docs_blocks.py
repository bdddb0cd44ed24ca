"""What the documentation holds: pages, blocks of code, and the commands a shell makes of them."""

import ast
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent

from conftest import ROOT, TOOLS

PAGES = sorted(
    page
    for pattern in ('*.md', 'docs/**/*.md', '*_configs/**/*.md')
    for page in ROOT.glob(pattern)
    if page.name != 'CHANGELOG.md'  # tells of commands as they were
)
SHELL = ('bash', 'sh', 'console', '')
"""Languages of a block whose lines are commands."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; ``before`` is the page's text above it."""

    page: Path
    line: int
    language: str
    text: str
    before: str

    def __str__(self) -> str:
        return f'{self.page.relative_to(ROOT)}:{self.line}'

    @property
    def first_line(self) -> str:
        return self.text.strip().partition('\n')[0]

    @property
    def is_config(self) -> bool:
        """Whether it is Python that assigns and does nothing else."""
        return self.language == 'python' and all(
            isinstance(node, ast.Assign) for node in ast.parse(self.text).body
        )

    @property
    def file_name(self) -> str:
        """The name of a config: the last file that the text above speaks of."""
        named = re.findall(r'`(\w+\.py)`', self.before[-600:])
        return named[-1] if named else f'config_{self.line}.py'


@dataclass(frozen=True)
class Command:
    """What a block makes a shell run, variables and braces expanded."""

    block: Block
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f'{self.block}: {" ".join(self.words)[:60]}'


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding='utf-8')
    found = re.finditer(r'^( *)```(\w*)\n(.*?)^\1```', text, re.MULTILINE | re.DOTALL)
    return [
        Block(page, text[: m.start()].count('\n') + 1, m[2], dedent(m[3]), text[: m.start()])
        for m in found
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    text = page.read_text(encoding='utf-8')
    return re.sub(r'^( *)```\w*\n.*?^\1```', '', text, flags=re.MULTILINE | re.DOTALL)


def spans(page: Path) -> list[str]:
    """The code inside a page's sentences, each on one line."""
    return [' '.join(span.split()) for span in re.findall(r'`([^`]+)`', prose(page))]


PRELUDE = """\
set -u
record() { printf '%s\\0' "$block" "$@" >&3; printf '\\1\\0' >&3; }
command_not_found_handle() { record "$@"; }
for name in source cd FUNCTIONS; do eval "$name() { record $name \\"\\$@\\"; }"; done
PATH=/nowhere
"""


@cache
def shell_commands(page: Path, leave_out: tuple[str, ...]) -> tuple[list[Command], str]:
    """The commands of a page's shell blocks, one after the other, and what the shell says.

    A shell runs the blocks in an empty folder, where every command only notes down its words: so
    variables, quotes and braces are the shell's own affair. A variable that no block of the page
    sets, and a command with a slash that is none of ours, end in an error of the shell's.

    Args:
        leave_out: first lines of blocks that are no commands.
    """
    shown = [b for b in blocks(page) if b.language in SHELL and b.first_line not in leave_out]
    functions = ' '.join([*(f'tools/{p.name}' for p in TOOLS.iterdir()), '.venv/bin/pre-commit'])
    script = PRELUDE.replace('FUNCTIONS', functions)
    script += ''.join(f'block={i}\n{block.text}\n' for i, block in enumerate(shown))
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / 'commands'
        inside = Path(folder) / 'empty'
        inside.mkdir()
        with note.open('w') as file:
            done = subprocess.run(
                [shutil.which('bash'), '--norc', '-c', f'exec 3>&{file.fileno()}\n{script}'],
                cwd=inside, pass_fds=[file.fileno()], capture_output=True, text=True, check=False,
            )  # fmt: skip
        records = note.read_text().split('\1\0')[:-1]
    words = [record.split('\0')[:-1] for record in records]
    return [Command(shown[int(place)], tuple(rest)) for place, *rest in words], done.stderr


def anchors(page: Path) -> set[str]:
    """What may follow ``#`` in a link to a page: its headings, as GitHub writes them."""
    titles = re.findall(r'^#+ (.*)$', prose(page), re.MULTILINE)
    titles = [re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', title) for title in titles]
    return {re.sub(r'[^\w\- ]', '', title.strip().lower()).replace(' ', '-') for title in titles}
