#!/usr/bin/env python
"""Whether RMT runs right and fast on this machine's GPU; what it prints belongs in a bug report.

Every step runs in a process of its own. Without a GPU it says so and checks what it can, in a
minute or two: the kernels in Triton's interpreter, and a training step on the CPU. Ends with one
line and an exit status: ready (0), or what to do (1; 2 where an argument is wrong).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from support import cli
from support.benchmarking.case import Case
from support.files import atomic_write
from support.gpu_checks import STEPS
from support.paths import TOOLS

RIVALS = ('swin-t', 'resnet-50')
SIZES = ((800, 1344), (512, 512))
TAKEN = ('triton', 'fused')  # what `auto` may take on a GPU
REPORT = 'set RMT_TRITON=off and report this output'
TIMEOUT = 900  # seconds of a step: a first compilation may take minutes
NO_GPU = (
    'no GPU is visible to PyTorch: nvidia-smi says whether the driver sees one, docs/install.md '
    'which torch has CUDA'
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='cuda:0' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write all findings there')
    parser.add_argument('--no-times', action='store_true', help='leave the measurements out')
    return parser.parse_args()


def run_step(step: str, device: str) -> dict:
    """The findings of a step, or ``error``: what it raised, or how its process ended."""
    env = dict(os.environ)
    if device == 'cpu':
        env['TRITON_INTERPRET'] = '1'
    command = [sys.executable, '-W', 'ignore', '-m', 'support.gpu_checks', step, device]
    try:
        done = subprocess.run(
            command,
            cwd=TOOLS,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return dict(error=f'no answer within {TIMEOUT} s')
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    lines = done.stderr.strip().splitlines()
    return dict(error=lines[-1] if lines else f'the process ended with {done.returncode}')


# --- what is printed -----------------------------------------------------------------------------


def show_versions(found: dict) -> None:
    for name, value in found.items():
        if name == 'packages':
            value = ', '.join(f'{k} {v or "absent"}' for k, v in value.items())
        elif name == 'memory':
            value = f'{value / 2**30:.0f} GiB'
        print(f'  {name:<12} {value or "none"}')


def show_implementations(found: dict) -> None:
    for name, reasons in found.items():
        different = sorted({reason for reason in reasons.values() if reason})
        print(f'  {name:<12} {"; ".join(different) or "can run"}')


def show_exactness(found: dict) -> None:
    for name, result in found.items():
        told = result.get('error') or f'{result["worst"]:.1e} (limit {result["limit"]:.0e})'
        print(f'  {name:<24} {told}')


def show(found: dict) -> None:
    for name, value in found.items():
        print(f'  {name:<18} {value}')


SHOW = {'versions': show_versions, 'implementations': show_implementations,
        'exactness': show_exactness}  # fmt: skip


def visible(device: str) -> str:
    """The device's name for a process that is to see no other."""
    index = torch.device(device).index or 0
    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    return given.split(',')[index].strip() if given else str(index)


def measure(device: str) -> list[dict]:
    """Time and memory of each implementation and of rivals, in float16."""
    from benchmark import collect, has_package  # the command beside this one

    os.environ['CUDA_VISIBLE_DEVICES'] = visible(device)
    common = Case('rmt-t', dtype='float16', device='cuda', seconds=10)
    cases = []
    for height, width in SIZES:
        for mode in ('inference', 'training'):
            case = replace(common, height=height, width=width, mode=mode)
            cases += [replace(case, attention=name) for name in ('triton', 'fused', 'naive')]
            if has_package('mmdet'):
                cases += [replace(case, model=name) for name in RIVALS]
    results: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:  # what it keeps to go on from is not needed
        collect(cases, results, Path(folder) / 'times.json')
    return results


# --- the last line -------------------------------------------------------------------------------


def verdict(found: dict[str, dict], device: str) -> str:
    """'' where all is well, else what to do, the first thing first."""
    wrong = fault(found)
    if device == 'cpu':
        return f'{wrong}; besides, {NO_GPU}' if wrong else NO_GPU
    if wrong:
        return wrong
    reasons = sorted(filter(None, found['implementations']['triton'].values()))
    return f'runs, but slowly: triton: {reasons[0]}' if reasons else ''


def fault(found: dict[str, dict]) -> str:
    """The first thing that does not run or is wrong, with what to do; '' where all is well."""
    for step in ('versions', 'implementations'):
        if error := found[step].get('error'):
            return f'{step}: {error}'
    exactness = found['exactness']
    if error := exactness.get('error'):
        return f'the self-check ended: {error}; {REPORT}'
    for name, result in exactness.items():
        if not name.startswith(TAKEN):
            continue
        if error := result.get('error'):
            return f'{name}: {error}; {REPORT}'
        if not result['worst'] <= result['limit']:  # a NaN is wrong
            return f'{name}: off by {result["worst"]:.1e}; {REPORT}'
    if error := found['operators'].get('error'):
        return f"mmcv's operators: {error}; compile them for CUDA (docs/install.md)"
    if error := found['training_step'].get('error'):
        return f'a training step: {error}; report this output'
    if not found['training_step']['finite_gradients']:
        return 'a training step gives gradients that are not finite; report this output'
    return ''


def main() -> None:
    args = parse_args()
    if torch.device(args.device).type == 'cuda' and not torch.cuda.is_available():
        raise cli.UserError(f'--device {args.device}: no CUDA GPU is visible to PyTorch')
    if args.device == 'cpu':
        print("No GPU: the kernels are checked in Triton's interpreter, the rest on the CPU.")
        print('That takes a minute or two, the exactness most of it.')
    found: dict[str, dict] = {}
    for step in STEPS:
        print(f'{step.replace("_", " ")}:', flush=True)
        found[step] = run_step(step, args.device)
        (show if 'error' in found[step] else SHOW.get(step, show))(found[step])
    if args.device != 'cpu' and not args.no_times:
        print('times, float16:')
        found['times'] = measure(args.device)
    if args.json:
        atomic_write(args.json, json.dumps(found, indent=1))
    problem = verdict(found, args.device)
    print(f'not ready: {problem}' if problem else 'ready')
    sys.exit(1 if problem else 0)


if __name__ == '__main__':
    cli.run(main)
