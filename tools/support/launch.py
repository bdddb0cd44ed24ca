"""Start SCRIPT once a GPU through torchrun: `launch.py SCRIPT FIXED [GPUS] [options]`.

Behind dist_train.sh (FIXED: the config) and dist_test.sh (config and checkpoint). GPUS defaults to
all visible ones, and to one process where there is none. Several machines: NNODES, NODE_RANK,
MASTER_ADDR and PORT, on each of them.
"""

import logging
import os
import socket
import sys

import torch
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('', 0))
        return probe.getsockname()[1]


def torchrun_arguments(script: str, fixed: list[str], rest: list[str]) -> list[str]:
    """The arguments for torchrun; ``rest`` is [GPUS] and the options of ``script``."""
    if rest and rest[0].isdigit():
        gpus, rest = int(rest[0]), rest[1:]
    else:
        gpus = max(1, torch.cuda.device_count())
    nodes = int(os.environ.get('NNODES', 1))
    if nodes > 1 and 'MASTER_ADDR' not in os.environ:
        sys.exit('error: NNODES is above 1: set MASTER_ADDR to the first machine, and NODE_RANK')
    # every machine has to know the port, so that several can not choose one for themselves
    port = os.environ.get('PORT') or (29500 if nodes > 1 else free_port())
    return [
        f'--nnodes={nodes}',
        f'--node_rank={os.environ.get("NODE_RANK", 0)}',
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
    processes = int(arguments[2].split('=')[1])
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, cores // processes)))
    # a process that failed has said why; torchrun's own report would bury that line
    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)
    try:
        run.run(run.parse_args(arguments))
    except ChildFailedError as error:
        sys.exit(max(1, error.get_first_failure()[1].exitcode))


if __name__ == '__main__':
    main()
