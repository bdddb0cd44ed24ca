"""Start SCRIPT once a GPU through torchrun: `launch.py SCRIPT FIXED [GPUS] [options]`.

Behind dist_train.sh (FIXED: the config) and dist_test.sh (config and checkpoint). GPUS defaults to
all visible ones, and to one process where there is none. Several machines: NNODES, NODE_RANK,
MASTER_ADDR and PORT, on each of them.

When one process ends, all do, and one line says which and why: what it said itself (support/cli.py
writes that where torchrun asks for it), its signal or its exit status.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports: no traceback

import logging
import os
import re
import socket
import sys
from pathlib import Path
from typing import NoReturn

import torch
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

LOST_PEER = 3
"""Exit status of a process whose connection to another broke: not the one that began it."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('', 0))
        return probe.getsockname()[1]


def refuse(message: str, status: int = 2) -> NoReturn:
    print(f'error: {message}', file=sys.stderr)
    sys.exit(status)


def whole_number(name: str, text: str, least: int, most: int | None = None) -> int:
    """The number in ``text`` where it lies in the bounds; else one line, and out."""
    bounds = f'of at least {least}' if most is None else f'from {least} to {most}'
    if re.fullmatch(r'\d+', text) and least <= int(text) and (most is None or int(text) <= most):
        return int(text)
    refuse(f'{name}={text}: must be a whole number {bounds}')


def processes(rest: list[str]) -> tuple[int, list[str]]:
    """How many processes this machine runs, and the options: ``rest`` is [GPUS] and the options."""
    visible = torch.cuda.device_count()
    if not rest or re.match(r'-\D', rest[0]):  # an option: GPUS was left out
        return max(1, visible), rest
    gpus = whole_number('GPUS', rest[0], 1)
    if visible and gpus > visible:
        refuse(f'GPUS={gpus}: only {visible} can be seen here (nvidia-smi, CUDA_VISIBLE_DEVICES)')
    return gpus, rest[1:]


def torchrun_arguments(script: str, fixed: list[str], rest: list[str]) -> list[str]:
    """The arguments for torchrun; ``rest`` is [GPUS] and the options of ``script``."""
    gpus, rest = processes(rest)
    nodes = whole_number('NNODES', os.environ.get('NNODES', '1'), 1)
    rank = whole_number('NODE_RANK', os.environ.get('NODE_RANK', '0'), 0, nodes - 1)
    if nodes > 1 and 'MASTER_ADDR' not in os.environ:
        refuse('NNODES is above 1: set MASTER_ADDR to the first machine, and NODE_RANK')
    # every machine has to know the port, so that several can not choose one for themselves
    port = os.environ.get('PORT') or str(29500 if nodes > 1 else free_port())
    port = whole_number('PORT', port, 1, 65535)
    return [
        f'--nnodes={nodes}',
        f'--node_rank={rank}',
        f'--nproc_per_node={gpus}',
        f'--master_addr={os.environ.get("MASTER_ADDR", "127.0.0.1")}',
        f'--master_port={port}',
        script,
        *fixed,
        '--launcher=pytorch',
        *rest,
    ]


def main() -> None:
    script, *rest = sys.argv[1:]
    count = 2 if script.endswith('test.py') else 1
    if len(rest) < count or any(word.startswith('-') for word in rest[:count]):
        what = 'CONFIG CHECKPOINT' if count == 2 else 'CONFIG'
        sys.exit(f'usage: dist_{os.path.basename(script)[:-3]}.sh {what} [GPUS] [options]')
    cores = os.cpu_count() or 1
    arguments = torchrun_arguments(script, rest[:count], rest[count:])
    local = int(arguments[2].split('=')[1])
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, cores // local)))
    # torchrun's own report would bury the line
    logging.disable(logging.CRITICAL)
    os.environ['RMT_LAUNCHED'] = '1'  # the processes leave it to this one to print
    # at Ctrl-C torchrun would interrupt the processes, each with a traceback; so it terminates them
    os.environ['PET_SIGNALS_TO_HANDLE'] = 'SIGTERM,SIGHUP,SIGQUIT'
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    later = '; training goes on from its last checkpoint with --resume' if count == 1 else ''
    try:
        run.run(run.parse_args(arguments))
    except KeyboardInterrupt:
        end_children()
        refuse(f'interrupted{later}', 128 + signal.SIGINT)
    except SignalException as error:
        end_children()
        refuse(f'stopped by {error.sigval.name}{later}', 128 + error.sigval)
    except ChildFailedError as error:
        refuse(*why(error.failures))


def end_children() -> None:
    """Stop what torchrun does not know of: it was itself stopped while it started them."""
    for listed in Path('/proc/self/task').glob('*/children'):  # Linux
        for process in map(int, listed.read_text().split()):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def why(failures: dict[int, ProcessFailure]) -> tuple[str, int]:
    """The line and the exit status for the processes, by rank, that did not end by themselves."""

    def order(rank: int) -> tuple[int, int]:
        failure = failures[rank]
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:
            return 0, failure.timestamp
        consequence = failure.exitcode in (
            LOST_PEER,
            -signal.SIGTERM,
        )  # torchrun terminates the rest
        return 1 + consequence, failure.timestamp

    rank = min(failures, key=order)
    failure = failures[rank]
    if failure.exitcode < 0:
        memory = ' (out of memory?)' if -failure.exitcode == signal.SIGKILL else ''
        return (
            f'the process of rank {rank} was killed by signal {-failure.exitcode}, '
            f'{failure.signal_name()}{memory}; the others were stopped',
            128 - failure.exitcode,
        )
    if os.path.isfile(failure.error_file):
        return str(failure.message), failure.exitcode
    return (
        f'the process of rank {rank} ended with exit status {failure.exitcode}, as it says above; '
        'the others were stopped',
        failure.exitcode,
    )


if __name__ == '__main__':
    main()
