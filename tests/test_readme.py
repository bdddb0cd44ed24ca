"""README.md: its code runs, its configs train, and what it names is there."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / 'README.md').read_text()
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]


def blocks(language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', README, re.DOTALL)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_script_and_config_of_a_command_exists(page: Path) -> None:
    text = page.read_text()
    named = set(
        re.findall(r'(?<!/)\b(?:tools|det_configs|seg_configs|backbone)/[\w/.-]+\.(?:py|sh)', text)
    )
    named = {name for name in named if not Path(name).stem.isupper()}  # FAMILY.py is anybody's
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_option_of_a_command_is_one_of_its_tool(page: Path) -> None:
    tools = {
        p.name: p.read_text() for p in (ROOT / 'tools').iterdir() if p.suffix in ('.py', '.sh')
    }
    shared = (ROOT / 'tools/support/cli.py').read_text()
    commands = re.findall(r'tools/(\w+\.py)((?:[^\n`]|\\\n)*)', page.read_text())
    unknown = [
        (name, option)
        for name, rest in commands
        for option in re.findall(r' (--[a-z][a-z-]*)', rest)
        if option != '--help' and f"'{option}'" not in tools[name] + shared
    ]
    assert unknown == []


def test_the_backbone_example_runs(capsys: pytest.CaptureFixture) -> None:
    (example,) = (code for code in blocks('python') if 'MODELS.build' in code)
    exec(compile(example, 'README.md', 'exec'), {})
    assert '(1, 512, 7, 10)' in capsys.readouterr().out


def test_the_two_class_example_trains(
    tmp_path: Path, tiny_coco: Path, tiny_det: list[str], run_tool: Callable[..., int]
) -> None:
    (example,) = (code for code in blocks('python') if '_base_' in code)
    config = tmp_path / 'cats_and_dogs.py'
    config.write_text(example.replace('./det_configs', str(ROOT / 'det_configs')))
    for split in ('train', 'val'):
        content = json.loads((tiny_coco / f'annotations/instances_{split}2017.json').read_text())
        content['categories'] = [dict(id=1, name='cat'), dict(id=3, name='dog')]
        target = tmp_path / f'data/annotations/instances_{split}2017.json'
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content))
        (tmp_path / f'data/{split}2017').symlink_to(tiny_coco / f'{split}2017')
    options = [option for option in tiny_det if not option.startswith('data_root=')]
    options.append(f'data_root={tmp_path / "data"}')
    assert run_tool('train', config, '--work-dir', tmp_path / 'w', '--cfg-options', *options) == 0
    (log,) = (tmp_path / 'w').glob('*/*.log')
    assert 'coco/segm_mAP' in log.read_text()
