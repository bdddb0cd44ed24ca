#!/usr/bin/env python
"""Compile the Triton attention for GPUs that need not be here, and say what the code needs.

Each kernel is compiled as it would be launched, down to machine code, which the disassembler that
comes with Triton reads: registers a thread, instructions that spill them to memory, shared memory,
and the instructions of the inner loop for each score. Nothing runs, and nothing is measured.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support import cli
from support.files import atomic_write

CAPABILITIES = (80, 86, 89, 90, 100, 120)  # A100, RTX 30, RTX 40 and L4, H100, B200, RTX 50
DTYPES = {'float16': 'fp16', 'bfloat16': 'bf16', 'float32': 'fp32', 'tf32': 'fp32'}
"""Triton's names; tf32 is float32 where PyTorch allows it."""
WIDTHS = {'whole': 32, 'lines': 16}
"""Channels of a head: in most stages of RMT whose attention is whole, and in their first ones."""
FLOATS = ('SUMS', 'DELTA', 'RATES', 'PLACES', 'TURNS')
"""Arguments that are float32 whatever the model's dtype."""


@dataclass(frozen=True)
class Need:
    """What a kernel needs on a GPU of a compute capability.

    Attributes:
        registers: of a thread; 255 is the most there is.
        spills: instructions that save a register in memory or get it back.
        shared: bytes of shared memory.
        instructions: of the inner loop, for each score.
    """

    kernel: str
    kind: str
    dtype: str
    capability: int
    registers: int
    spills: int
    shared: int
    instructions: float


def need(kernel: str, kind: str, dtype: str, capability: int, d: int | None = None) -> Need:
    """Compile a kernel of attention ('forward', 'query', 'key') and look at its machine code."""
    import torch

    from backbone.kernels import triton_attention, triton_tiles

    mode = triton_tiles.WHOLE if kind == 'whole' else triton_tiles.ROWS
    torch_dtype = torch.float32 if DTYPES[dtype] == 'fp32' else getattr(torch, dtype)
    precision = 'tf32' if dtype == 'tf32' else 'ieee'
    constants = triton_tiles.constants(
        kernel, d or WIDTHS[kind], 16, torch_dtype, mode, precision, capability
    )
    options = {name: constants.pop(name) for name in ('num_warps', 'num_stages')}
    function = getattr(triton_attention, f'{kernel}_kernel')
    compiled = compile_for(function, DTYPES[dtype], constants, capability, options)
    scores = constants['M'] * constants['N'] / (32 * options['num_warps'])  # of a thread
    registers, code = disassembled(compiled.asm['cubin'])
    return Need(
        *(kernel, kind, dtype, capability, registers),
        spills=sum(bool(re.search(r'\b(STL|LDL)\b', line)) for line in code),
        shared=compiled.metadata.shared,
        instructions=longest_loop(code, scores) / scores,
    )


def compile_for(
    function: Any, dtype: str, constants: dict[str, Any], capability: int, options: dict[str, int]
) -> Any:
    """A kernel as Triton compiles it at a launch; pointers are multiples of 16 bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from backbone.kernels.triton_attention import SIZES

    def kind(name: str) -> str:
        if name in constants:
            return 'constexpr'
        if name in SIZES:
            return 'i32'
        return 'fp32' if name == 'scale' else f'*{"fp32" if name in FLOATS else dtype}'

    signature = {name: kind(name) for name in function.arg_names}
    aligned = {
        (i,): [['tt.divisibility', 16]]
        for i, type_ in enumerate(signature.values())
        if type_.startswith('*')
    }
    source = ASTSource(function, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)


def disassembled(cubin: bytes) -> tuple[int, list[str]]:
    """Registers of a thread, and the lines of the machine code."""
    import triton

    programs = Path(triton.__file__).parent / 'backends/nvidia/bin'

    def ask(program: str, *arguments: str) -> str:
        command = [programs / program, *arguments, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        registers = re.search(r'REG:(\d+)', ask('cuobjdump', '--dump-resource-usage'))
        return int(registers[1]), ask('nvdisasm', '-c').splitlines()


def longest_loop(code: list[str], scores: float) -> float:
    """Instructions from a label to the branch back to it, where they are most, for one iteration.

    A loop may hold several iterations: each takes an exponential a score; ``scores`` of a thread.
    """
    labels, longest, exponentials = {}, 0, 0
    for i, line in enumerate(code):
        if label := re.match(r'\s*(\.L_x_\d+):', line):
            labels[label[1]] = i
        branch = re.search(r'BRA.*`\((\.L_x_\d+)\)', line)
        if branch and branch[1] in labels:
            body = code[labels[branch[1]] : i + 1]
            body = [line for line in body if re.match(r'\s+/\*[0-9a-f]{4,}\*/', line)]
            if len(body) > longest:
                longest, exponentials = len(body), sum('MUFU.EX2' in line for line in body)
    return longest / max(1, exponentials // scores)


def table(needs: list[Need]) -> str:
    """Markdown, a row a dtype and capability: forward / queries / keys."""
    lines = [
        '| | GPU | instructions a score, whole | lines | registers | spills | shared memory |',
        '|---|---|---|---|---|---|---|',
    ]
    for (dtype, capability), group in itertools.groupby(
        needs, key=lambda n: (n.dtype, n.capability)
    ):
        group = list(group)
        counts = [
            ' / '.join(f'{n.instructions:.1f}' for n in group if n.kind == kind) for kind in WIDTHS
        ]
        most = max(n.registers for n in group)
        spills, shared = max(n.spills for n in group), max(n.shared for n in group)
        lines.append(
            f'| {dtype} | sm_{capability} | {counts[0]} | {counts[1]} | {most} | {spills} '
            f'| {shared / 1024:.0f} KB |'
        )
    return '\n'.join(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--capabilities',
        type=int,
        nargs='+',
        default=CAPABILITIES,
        help='compute capabilities, 80 for 8.0 (default: all since 8.0)',
    )
    parser.add_argument(
        '--dtypes', nargs='+', choices=DTYPES, default=list(DTYPES), help='(default: all)'
    )
    parser.add_argument('--json', type=Path, help='write what was found there too')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    os.environ.pop('TRITON_INTERPRET', None)
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise cli.UserError('the package triton is not installed: pip install triton') from error
    cases = itertools.product(args.dtypes, args.capabilities, WIDTHS, ('forward', 'query', 'key'))
    needs = [need(kernel, kind, dtype, cap) for dtype, cap, kind, kernel in cases]
    print(table(needs))
    if args.json:
        atomic_write(args.json, json.dumps([asdict(n) for n in needs], indent=1))


if __name__ == '__main__':
    cli.run(main)
