"""What the commands share: arguments, and saying what is wrong.

A mistake of the user's ends in one line on stderr and exit status 2; ``RMT_TRACEBACK=1`` shows the
traceback as well. In a distributed run one process of each machine speaks.
"""

import argparse
import atexit
import json
import logging
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from mmengine.dist import is_distributed

from backbone.engine import ConfigError
from backbone.engine.explain import one_line
from backbone.weights.match import CheckpointError

LOST_PEER = 3  # as in support/launch.py


class UserError(Exception):
    """A mistake of the user's; the message is one line: what is wrong, where, what to do."""


# where launchers say which process of its machine this is: torchrun, srun, Open MPI, MPICH and
# Intel's MPI, MVAPICH, Cray's PALS
_LOCAL_RANKS = (
    'LOCAL_RANK',
    'SLURM_LOCALID',
    'OMPI_COMM_WORLD_LOCAL_RANK',
    'MPI_LOCALRANKID',
    'MV2_COMM_WORLD_LOCAL_RANK',
    'PALS_LOCAL_RANKID',
)


def local_rank() -> int:
    """Which process of this machine this is, from 0; 0 where no launcher says."""
    return next((int(os.environ[n]) for n in _LOCAL_RANKS if os.environ.get(n, '').isdigit()), 0)


def fail(message: str, every_process: bool = False, status: int = 2) -> NoReturn:
    """End with one line on stderr, exit status 2 where it is the user's to put right."""
    if path := os.environ.get('TORCHELASTIC_ERROR_FILE'):  # where torchrun asks why
        with open(path, 'w') as file:
            json.dump({'message': message, 'timestamp': int(time.time())}, file)
    launched = path and 'RMT_LAUNCHED' in os.environ  # then support/launch.py prints it, once
    if not launched and (every_process or local_rank() == 0):
        print(f'error: {message}', file=sys.stderr, flush=True)
    sys.exit(status)


def run(main: Callable[[], None]) -> None:
    """Run a tool's ``main``; what a user can put right ends in one line."""
    logging.Handler.handleError = _stop_where_nobody_reads
    try:
        _wait_for_workers(main)
        sys.stdout.flush()
        _end_one_of_several()
    # the last: a loss is NaN
    except (UserError, CheckpointError, ConfigError, FloatingPointError) as error:
        _show_traceback()
        fail(one_line(error))
    except KeyboardInterrupt as stop:
        # 128 + SIGINT, as shells count it; `stop` may say how to go on
        fail('; '.join(['interrupted', *map(str, stop.args)]), status=130)
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        # Python itself writes once more, at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)  # what a shell says of any command in `| head`
    except Exception as error:
        message = _unreadable_file(error) or _half_on_cpu(error) or _killed_worker(error)
        if message is None and _lost_peer(error):
            fail('another process of this run has ended', status=LOST_PEER)
        if message is None:
            raise
        _show_traceback()
        fail(message, every_process=True)


def _end_one_of_several() -> None:
    """End a process whose work is done, where it is one of several, without taking it apart.

    Threads of a process group may abort it then (SIGABRT, "terminate called without an active
    exception"), and the launcher would call a run failed that has written all its results.
    """
    if is_distributed():
        # what the interpreter does before: threads may still write; the group is left
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has gone."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError):  # stdout is closed, or no file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


_handle_error = logging.Handler.handleError


def _stop_where_nobody_reads(handler: logging.Handler, record: logging.LogRecord) -> None:
    """A logged line that cannot be written: end as a printed one does, or show why and go on."""
    if isinstance(sys.exc_info()[1], BrokenPipeError):
        raise  # what logging is handling
    _handle_error(handler, record)


def _show_traceback() -> None:
    if os.environ.get('RMT_TRACEBACK') == '1':
        traceback.print_exc()


def _unreadable_file(error: Exception) -> str | None:
    """The line for a data file that failed to load, in this process or in a dataloader's worker.

    A worker's error arrives as the same type with the worker's traceback as its text.
    """
    if found := re.search(r'(?:^|Error: )failed to load image: (.+)', str(error)):
        return f'{found[1].strip()}: no image that can be decoded; replace it, or leave it out'
    if found := re.search(r"No such file or directory: '(.+?)'", str(error)):
        return f'{found[1]}: no such file'
    return None


def _half_on_cpu(error: Exception) -> str | None:
    """The line for an operator that lacks a 16-bit type: of mmcv's, RoIAlign and NMS on a CPU."""
    text = one_line(error)
    if not re.search(r"(not implemented for|type Float but found) '?(BFloat16|Half)", text):
        return None
    return (
        f'{text}: an operator that computes in float32 alone here, as RoIAlign and NMS do on a '
        'CPU; leave 16 bits out (test_cfg.fp16, autocast), take a GPU, or --bf16'
    )


def _killed_worker(error: BaseException | None) -> str | None:
    """The line for a dataloader's worker that a signal has ended; it can say nothing itself."""
    while error:
        if found := re.search(r'DataLoader worker .*is killed by signal: ([^.]+)\.', str(error)):
            number = next((n for n in signal.valid_signals() if signal.strsignal(n) == found[1]), 0)
            hint = {
                signal.SIGKILL: ' (out of memory?): fewer num_workers or a smaller batch need less',
                signal.SIGBUS: ': there is too little shared memory (/dev/shm; docker: --shm-size)',
            }.get(number, '')
            return f'a dataloader worker was killed by signal {int(number)}, {found[1]}{hint}'
        error = error.__cause__ or error.__context__
    return None


def _wait_for_workers(main: Callable[[], None]) -> None:
    """Run ``main``; where a pipe's other end is gone, let PyTorch say which worker has died.

    It raises that at a signal, wherever this process is when that comes.
    """
    try:
        main()
    except BrokenPipeError:
        raise
    except (ConnectionError, EOFError):
        time.sleep(1)
        raise


def _lost_peer(error: Exception) -> bool:
    """Whether another process of a run without GPUs is gone, as gloo says it."""
    told = isinstance(error, RuntimeError)  # a pipe of this process's own raises ConnectionError
    return told and bool(re.search(r'Connection (closed|reset) by peer', str(error)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every tool around a runner has."""
    parser.add_argument('--work-dir', help='for logs and checkpoints (work_dirs/CONFIG)')
    add_cfg_options(parser)
    parser.add_argument('--no-check', action='store_true', help='skip the checks of data')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch passes it, torchrun sets the environment variable
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add what every tool that reads a config has."""
    from support.options import OptionsAction  # reads this module

    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        default={},
        metavar='KEY=VALUE',
        help='change the config, e.g. data_root=/data/coco train_dataloader.batch_size=4',
    )


def weights_file(path: str, what: str) -> str:
    """``path`` where it is a file, or an address from which weights are read."""
    return path if '://' in path else existing_file(path, what)


def existing_file(path: str, what: str) -> str:
    """``path`` where it is a file."""
    if not os.path.isfile(path):
        kind = 'is a directory' if os.path.isdir(path) else 'no such file'
        raise UserError(f'{what} {path}: {kind} (from {os.getcwd()})')
    return path
