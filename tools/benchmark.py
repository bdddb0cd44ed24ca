#!/usr/bin/env python
"""Time and memory of the backbones: ours in each implementation, the plain formula, and rivals.

Each measurement runs in a process of its own. OUT gets benchmark.json (kept up to date while it
runs; what it already holds is not measured again), a table and plots.

A machine is not as fast at one minute as at the next: --rounds measures every case that many times,
in turn, and takes all its times together.

  tools/benchmark.py                                  RMT and rivals, 25 minutes on two CPU cores
  tools/benchmark.py --models ravlt-t mavit-s         of RAVLT and MAViT what is named
  tools/benchmark.py --models rmt-t swin-t --sizes 512x512 --modes inference
"""

import argparse
import importlib.util
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from support import cli
from support.benchmarking import report as benchmark_report
from support.benchmarking.case import RIVALS, VARIANT_LETTERS, Case, timing
from support.files import atomic_write
from support.paths import TOOLS

ATTENTION = ['naive', 'fused', 'kernel', 'auto']
OF_ALL = ['naive', 'fused', 'auto']  # of every family; the others are RMT's
MODES = ['inference', 'training', 'training-cp']
GROWTH = [512, 1024, 1536, 2048]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--models', nargs='+', choices=[*VARIANT_LETTERS, *RIVALS], metavar='MODEL')
    parser.add_argument('--attention', nargs='+', choices=ATTENTION, default=['naive', 'auto'])
    parser.add_argument('--modes', nargs='+', choices=MODES, default=['inference', 'training'])
    parser.add_argument('--sizes', nargs='+', metavar='HxW', help='800x1280; 512x512 in training')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--dtype', choices=['float32', 'bfloat16', 'float16'], default='float32')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--threads', type=int, default=0, help='of the CPU; 0: as PyTorch chooses')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument(
        '--rounds', type=int, default=1, help='measure every case so often, in turn'
    )
    parser.add_argument('--seconds', type=float, default=12, help='begin no repetition after this')
    parser.add_argument('--growth', action='store_true', help='also time and memory against size')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'))
    parser.add_argument('--report', action='store_true', help='only write table and plots again')
    return parser.parse_args()


def parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if not match or min(map(int, match.groups())) < 32:
        raise cli.UserError(f'--sizes {text}: give HEIGHTxWIDTH, from 32x32 up, like 800x1280')
    return int(match[1]), int(match[2])


def plan(args: argparse.Namespace) -> list[Case]:
    """All measurements, the machine's matrix rate first."""
    common = Case(
        'matrix',
        batch=args.batch,
        dtype=args.dtype,
        device=args.device,
        threads=args.threads,
        repeats=args.repeats,
        seconds=args.seconds,
    )
    cases = [common]
    here = [name for name in RIVALS if has_package(RIVALS[name]['type'].partition('.')[0])]
    rmt = [name for name, (family, _) in VARIANT_LETTERS.items() if family == 'RMT']
    for mode, model in itertools.product(args.modes, args.models or [*rmt, *here]):
        ours = model in VARIANT_LETTERS
        names = args.attention if model in rmt else [n for n in args.attention if n in OF_ALL]
        if mode == 'training-cp' and not ours:
            continue
        default = '800x1280' if mode == 'inference' else '512x512'
        for size, attention in itertools.product(args.sizes or [default], names if ours else ['']):
            height, width = parse_size(size)
            case = replace(common, model=model, mode=mode, attention=attention)
            operators = ours and mode == 'inference'
            cases.append(replace(case, height=height, width=width, operators=operators))
            if mode == 'training-cp':  # what is left without blocks tells what they hold
                cases.append(replace(cases[-1], mode='training', part='frame'))
    if args.growth:
        # the formula holds 16 GB of scores for one such layer at 2048 x 2048
        for size, attention in itertools.product(GROWTH, args.attention):
            if attention != 'naive' or size <= 1024:
                case = replace(common, attention=attention, height=size, width=size, repeats=3)
                cases.append(replace(case, model='rmt-t', part='attention'))
                cases.append(replace(case, model='rmt-s', part='axial'))
    return cases


def main() -> None:
    args = parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise cli.UserError(
            '--device cuda: no CUDA GPU is visible to PyTorch; leave the option out'
        )
    for name in ('repeats', 'rounds'):
        if getattr(args, name) < 1:
            raise cli.UserError(f'--{name} {getattr(args, name)}: give 1 or more')
    for name in args.models or []:
        package = RIVALS[name]['type'].partition('.')[0] if name in RIVALS else 'torch'
        if not has_package(package):
            raise cli.UserError(f'--models {name}: the package {package} is not installed')
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / 'benchmark.json'
    results = json.loads(file.read_text()) if file.exists() else []
    if not args.report:
        collect(plan(args), results, file, args.rounds)
    benchmark_report.write(results, args.out)


def collect(cases: list[Case], results: list[dict], file: Path, rounds: int = 1) -> None:
    """Measure what ``results`` does not hold yet, and keep the file up to date."""
    names = [field.name for field in fields(Case)]
    places = {Case(**{name: r[name] for name in names}): i for i, r in enumerate(results)}
    done = {case: results[i].get('rounds', 1) for case, i in places.items()}
    todo = [case for number in range(rounds) for case in cases if done.get(case, 0) <= number]
    start = time.time()
    for i, case in enumerate(todo):
        left = (time.time() - start) / i * (len(todo) - i) if i else None
        estimate = f', about {left / 60:.0f} min left' if left is not None else ''
        print(f'[{i + 1}/{len(todo)}{estimate}] {describe(case)}', flush=True)
        result = run(case)
        print(f'    {benchmark_report.summary(result)}', flush=True)
        if case in places:
            results[places[case]] = together(results[places[case]], result)
        else:
            places[case] = len(results)
            results.append(result)
        atomic_write(file, json.dumps(results, indent=1))


def together(before: dict, new: dict) -> dict:
    """One result of two of the same case: all their times, the higher peak of memory."""
    measured = new if 'times' in new else before
    both = measured | dict(rounds=before.get('rounds', 1) + 1)
    if 'times' not in before or 'times' not in new:  # one of them failed
        return both
    times = both['times'] = before['times'] + new['times']
    if 'rate' in new:
        return both | dict(rate=max(before['rate'], new['rate']))
    peak = max(before['peak_bytes'], new['peak_bytes'])
    return both | dict(peak_bytes=peak) | timing(times, new['batch'])


def has_package(name: str) -> bool:
    """Whether a rival's package is installed; one that is not is left out."""
    return importlib.util.find_spec(name) is not None


def describe(case: Case) -> str:
    words = [case.model, case.attention, case.mode, '' if case.part == 'all' else case.part]
    return ' '.join(filter(None, [*words, f'{case.height}x{case.width}', case.dtype]))


def run(case: Case) -> dict:
    """The result of a case measured in a new process; with ``error`` where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'case.json'
        file.write_text(json.dumps(asdict(case)))
        command = [sys.executable, '-m', 'support.benchmarking.case', str(file)]
        done = subprocess.run(command, cwd=TOOLS, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    lines = done.stderr.strip().splitlines() or [f'exit status {done.returncode}']
    return asdict(case) | dict(error=lines[-1])


if __name__ == '__main__':
    cli.run(main)
