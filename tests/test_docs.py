"""The documentation as code: examples run, configs build, commands parse, links lead somewhere.

Every page is found by itself, and every block of it is checked unless a table here says why not.
"""

import argparse
import copy
import functools
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DET_CONFIG, ROOT, TOOLS, load_tool
from docs_blocks import (
    PAGES,
    SHELL,
    Block,
    Command,
    anchors,
    blocks,
    prose,
    shell_commands,
    spans,
)
from mmengine.config import Config
from mmengine.registry import DATASETS, HOOKS, MODELS, VISUALIZERS, init_default_scope
from onnx_files import CORNERS, DETECTOR, write_onnx
from support import config as tools_config
from tiny_data import write_image

from backbone import RMT

NO_CODE = {
    'backbone/           what another code base imports: torch and mmengine alone': 'the tree',
    'tools ──> engine ──> weights ──> rmt ──> network ──> kernels/layers ──> layers ──> '
    'attention ──> kernels/build': (
        'a drawing; tests/test_architecture.py holds it against the imports'
    ),
    'image (B, 3, H, W)': 'a drawing',
    'bytes ─ read.py ──> what is it? zip, safetensors, a web page …    refused: one line': (
        'a drawing'
    ),
    'tools/train.py CONFIG --cfg-options data_root=… pretrained=…': 'a drawing',
    'file: RMT_S.pth (220,257,148 bytes)': 'what a command prints',
    'variant: RAVLT-S or MAViT-S': 'what a command prints',
}
"""Blocks that are neither program, config nor commands, by their first line."""


@functools.cache
def untrained(config: str) -> dict:
    """The checkpoint of a model as it begins."""
    cfg = tools_config.read_config(str(ROOT / config), {})
    init_default_scope(cfg.default_scope)
    classes = dict(classes=cfg.classes, palette=cfg.palette)
    return dict(meta=dict(dataset_meta=classes), state_dict=MODELS.build(cfg.model).state_dict())


def make_demo(data: str, config: str, checkpoint: str) -> None:
    """Make here what the demos leave behind, with a model as it begins."""
    for folder in ('backbone', 'cls_configs', 'det_configs', 'seg_configs'):
        Path(folder).symlink_to(ROOT / folder)
    load_tool('shapes_dataset').make_dataset(data, data.endswith('_ade'), dict(train=1, val=1))
    Path(checkpoint).parent.mkdir(parents=True)
    torch.save(untrained(config), checkpoint)


def export_and_photo(file: str) -> None:
    """A file in the form of an exported detector, and a photo."""
    write_onnx(Path(file), CORNERS, DETECTOR.to_text())
    write_image(Path('photo.jpg'), np.zeros((40, 60, 3), np.uint8))


PROGRAMS = {
    "torch.load('IN.pth', weights_only=False)": lambda: torch.save(
        {'model': torch.nn.Linear(1, 1)}, 'IN.pth'
    ),
    "'RMT-T.pth'": lambda: torch.save({'model': RMT('tiny').state_dict()}, 'RMT-T.pth'),
    "'work_dirs/demo/": lambda: make_demo(
        'data/shapes',
        'det_configs/shapes/mask_rcnn_rmt_t_fpn_shapes.py',
        'work_dirs/demo/iter_330.pth',
    ),
    "'work_dirs/demo-seg/": lambda: make_demo(
        'data/shapes_ade',
        'seg_configs/shapes/fpn_rmt_t_shapes.py',
        'work_dirs/demo-seg/iter_300.pth',
    ),
    "'detector.onnx'": lambda: export_and_photo('detector.onnx'),
}
"""What stands in for the files that a program reads: by a part of it, what makes them."""

NOT_OURS = {
    'source': 'activates the environment',
    'pip': 'installs',
    '.venv/bin/pre-commit': 'of the pre-commit package',
    'tensorboard': 'of the package of that name',
    'wandb': 'of the package of that name',
    'trtexec': 'of TensorRT',
}
"""First words of commands that are not of this project."""

OWN_FILES = {
    'CONFIG': DET_CONFIG,
    'my_config.py': DET_CONFIG,
}
"""Configs that stand for the reader's own, and what stands in for them."""

NEW_KEYS = {
    'load_from': 'of the runner',
    'pretrained': 'of backbone/engine/keys.py',
    'randomness.seed': 'of set_random_seed',
    'default_hooks.checkpoint.save_optimizer': 'of CheckpointHook',
    'model.backbone.drop_path_rate': "of RMT; its size's where a config has none",
    'log_processor.window_size': 'of LogProcessor',
    'test_evaluator.output_dir': 'of IoUMetric',
    'optim_wrapper.clip_grad.max_norm': 'of OptimWrapper',
    'train_dataloader.dataset.pipeline.3.prob': 'of RandomChoice',
}
"""Keys of --cfg-options that a config need not have beforehand, and whose they are."""

INSTALLED_COMMANDS = dict(
    re.findall(
        r'^(rmt-[\w-]+) = "rmt_downstream\.commands:(\w+)"$',
        (ROOT / 'pyproject.toml').read_text(),
        re.MULTILINE,
    )
)
"""The commands of a wheel, and the tools behind them."""

MAKE_VARIABLES = {'VENV', 'JOBS', 'TORCH', 'REQUIREMENTS', 'PYTHON', 'MAX_JOBS', 'DATA', 'ARGS'}

BLOCKS = [block for page in PAGES for block in blocks(page) if block.first_line not in NO_CODE]
CONFIGS = [block for block in BLOCKS if block.is_config]
MODULES = [block for block in BLOCKS if '.register_module()' in block.text]
"""What a config of the same page imports, and runs so."""
COMMANDS = [command for page in PAGES for command in shell_commands(page, tuple(NO_CODE))[0]]
by_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))


# --- blocks --------------------------------------------------------------------------------------


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    kinds = {*SHELL, 'python'}
    assert [str(block) for block in BLOCKS if block.language not in kinds] == []
    first_lines = {block.first_line for page in PAGES for block in blocks(page)}
    assert set(NO_CODE) - first_lines == set()


@by_page
def test_code_is_fenced(page: Path) -> None:
    assert re.findall(r'\n\n( {4}\S.*)', prose(page)) == []


@pytest.mark.parametrize(
    'block',
    [b for b in BLOCKS if b.language == 'python' and b not in [*CONFIGS, *MODULES]],
    ids=str,
)
def test_program_runs(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for part, make_files in PROGRAMS.items():
        if part in block.text:
            make_files()
    exec(compile(block.text, str(block), 'exec'), {'torch': torch})
    if 'strides 4, 8, 16, 32' in block.text:
        assert '(1, 512, 7, 10)' in capsys.readouterr().out


# --- configs -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the config folders, the configs of all pages and what they import."""
    folder = tmp_path_factory.mktemp('project')
    for name in ('backbone', 'cls_configs', 'det_configs', 'seg_configs'):
        (folder / name).symlink_to(ROOT / name)
    for block in CONFIGS:
        base = '' if '_base_' in block.text else f"_base_ = './{DET_CONFIG}'\n"
        (folder / block.file_name).write_text(base + block.text)
    for block in MODULES:
        (folder / block.file_name).write_text(block.text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.mark.parametrize('block', CONFIGS, ids=str)
def test_config_builds(block: Block, project: Path) -> None:
    cfg = tools_config.read_config(str(project / block.file_name), {})
    init_default_scope(cfg.default_scope)
    MODELS.build(cfg.model)
    for split in ('train', 'val', 'test'):
        DATASETS.build({**cfg[f'{split}_dataloader'].dataset, 'lazy_init': True})
    VISUALIZERS.build({**cfg.visualizer, 'vis_backends': []})  # hooks look for it
    for hook in (*cfg.default_hooks.values(), *cfg.get('custom_hooks', [])):
        HOOKS.build(hook)


# --- commands ------------------------------------------------------------------------------------


@by_page
def test_a_shell_understands_every_command(page: Path) -> None:
    assert shell_commands(page, tuple(NO_CODE))[1] == ''


class Parsed(Exception):
    """Carries what was asked of a tool's parser out of the tool."""


parse_args = argparse.ArgumentParser.parse_args


def ask_parser(
    tool: Path, arguments: tuple[str, ...], question: Callable[[argparse.ArgumentParser], Any]
) -> Any:
    """What ``question`` returns of the tool's own parser; the tool goes no further."""

    def stop(self: argparse.ArgumentParser, args=None, namespace=None) -> None:
        raise Parsed(question(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [tool.name, *arguments])
        patch.setattr(argparse.ArgumentParser, 'parse_args', stop)
        try:
            load_tool(tool.stem).main()
        except Parsed as answer:
            return answer.args[0]
    raise AssertionError(f'{tool.name} parses no arguments')


def check_tool(words: tuple[str, ...], project: Path) -> None:
    """Arguments that the tool's parser takes, a config that is there, options that fit it."""
    tool = ROOT / words[0]
    if tool.suffix == '.sh':
        tool, words = behind_launcher(tool, words)
    if '--help' in words:
        return
    args = ask_parser(tool, words[1:], parse_args)
    if getattr(args, 'config', None) is None:
        return
    name = OWN_FILES.get(args.config, args.config)
    path = project / name if (project / name).is_file() else tools_config.find_config(name)
    cfg = tools_config.from_file(path)
    options = getattr(args, 'cfg_options', {})
    unknown = [key for key in options if not has(cfg, key) and key not in NEW_KEYS]
    assert not unknown, f'{path} has no {unknown}'
    tools_config.read_config(str(path), options)


def behind_launcher(script: Path, words: tuple[str, ...]) -> tuple[Path, tuple[str, ...]]:
    """The tool that a launcher starts, and the words for it."""
    if script.name == 'slurm_train.sh':
        return TOOLS / 'train.py', (words[0], *words[3:])
    fixed = 2 if script.name == 'dist_test.sh' else 1
    gpus = words[1 + fixed : 2 + fixed]
    skipped = 1 if gpus and gpus[0].isdigit() else 0
    tool = TOOLS / f'{script.stem.removeprefix("dist_")}.py'
    return tool, (words[0], *words[1 : 1 + fixed], *words[1 + fixed + skipped :])


def has(node: object, dotted: str) -> bool:
    """Whether a config has a value at a dotted key."""
    for name in dotted.split('.'):
        if isinstance(node, (list, tuple)):
            if not name.isdigit() or int(name) >= len(node):
                return False
            node = node[int(name)]
        elif isinstance(node, (dict, Config)) and name in node:
            node = node[name]
        else:
            return False
    return True


INSTALLED = r'.+/site-packages/(mmdet|mmseg)/(\.mim/tools/.+)'


def check_installed(words: tuple[str, ...], project: Path) -> None:
    """A script of mmdet or mmseg that is there, options that it has, configs that it can read."""
    package, place = re.fullmatch(INSTALLED, words[0]).groups()
    script = (Path(importlib.util.find_spec(package).origin).parent / place).read_text()
    for word in words[1:]:
        if word.startswith('--'):
            assert f"'{word}'" in script
        if word.endswith('.py'):
            tools_config.from_file(project / word)


def check_make(words: tuple[str, ...]) -> None:
    """Targets and variables that the Makefile has, and tests that are there."""
    targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    given = dict(word.split('=', 1) for word in words if '=' in word)
    assert {word for word in words if '=' not in word} <= targets
    assert set(given) <= MAKE_VARIABLES
    for path in re.findall(r'tests/[\w/.]+', given.get('ARGS', '')):
        assert (ROOT / path).exists(), path


@pytest.fixture(autouse=True, scope='module')
def _each_config_read_once() -> Iterator[None]:
    read = functools.cache(tools_config.from_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tools_config, 'from_file', lambda path: copy.deepcopy(read(path)))
        yield


@pytest.mark.parametrize('command', COMMANDS, ids=str)
def test_command(command: Command, project: Path) -> None:
    words = command.words[1:] if command.words[0] == 'python' else command.words
    if words[0] in INSTALLED_COMMANDS:
        (tool,) = TOOLS.glob(f'{INSTALLED_COMMANDS[words[0]]}.*')
        words = (str(tool.relative_to(ROOT)), *words[1:])
    if words[0] == 'make':
        check_make(words[1:])
    elif words[0].startswith('tools/'):
        check_tool(words, project)
    elif re.fullmatch(INSTALLED, words[0]):
        check_installed(words, project)
    else:
        assert words[0] in NOT_OURS


# --- what sentences name -------------------------------------------------------------------------


@by_page
def test_every_command_in_a_sentence_is_one(page: Path) -> None:
    for span in spans(page):
        if found := re.match(r'make ([\w-]+)', span):
            check_make((found[1],))
        if found := re.match(r'(?:[A-Z_]+=\S+ )*(?:python )?(tools/\w+\.py) (.*)', span):
            options = re.findall(r'(?<!\S)--[a-z][a-z-]*', found[2])
            known = ask_parser(ROOT / found[1], (), lambda parser: parser._option_string_actions)
            assert set(options) <= set(known)


@by_page
def test_every_file_that_is_named_is_there(page: Path) -> None:
    named = re.findall(
        r'(?<![\w./-])(?:backbone|(?:cls|det|seg)_configs|docs|tests|tools)/[\w/.-]+\.[a-z]+\b',
        page.read_text(encoding='utf-8'),
    )
    # FAMILY.py is anybody's
    named = {name for name in named if not re.search('[A-Z]{3}', Path(name).stem)}
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@by_page
def test_every_link_leads_somewhere(page: Path) -> None:
    astray = []
    for link in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        path, _, anchor = link.partition('#')
        target = page.parent / path if path else page
        if '://' in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            astray.append(link)
    assert astray == []
