"""What the command-line tools share: arguments of the same name and meaning, threads, exit status."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import record

from ..common.errors import RunError, UsageError
from ..common.processors import usable_processors
from ..configuration.cfg_options import add_cfg_options
from ..training.hooks.termination import Terminated, listening
from ..training.launchers import find_launcher
from ..training.loader_workers import TERMINATION_SIGNALS

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
FAILED_STATUS = 1
USAGE_STATUS = 2
INTERRUPTED_STATUS = 130
THREADS_SET_BY = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')  # where torch looks


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing have in common."""
    add = parser.add_argument
    add('--work-dir', metavar='DIR', help='folder of logs and checkpoints [work_dirs/CONFIG]')
    add('--data-root', metavar='DIR', help="another folder in the same layout, COCO's or ImageNet's")
    add('--launcher', choices=LAUNCHERS, default=None, help='how the processes were started [found in the environment]')
    add_cfg_options(parser)
    add('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)  # older launchers pass it


def run_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments by name, with the launcher that was named, or the one that the environment shows."""
    options = {**vars(arguments)}
    if (local_rank := options.pop('local_rank')) is not None:
        os.environ.setdefault('LOCAL_RANK', str(local_rank))
    return {**options, 'launcher': find_launcher(options['launcher'])}


def leave_process_group() -> None:
    """Wait for the other processes of a distributed run, if there are any, and leave the group.

    A process that only exits may be aborted: gloo's threads need the interpreter to release their last tensors.
    It is not called after an error, when the others may wait for a message that will not come.
    """
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def limit_threads() -> None:
    """Make torch use no more threads than there are processors for this process, unless the environment sets a number.

    torch takes all processors of the machine, though a container may have the time of only a few.
    """
    usable, threads = usable_processors(), torch.get_num_threads()
    if threads > usable and not any(os.environ.get(name) for name in THREADS_SET_BY):
        torch.set_num_threads(usable)
        print(
            f'{usable} of {threads} threads, since this process may use no more processors: '
            f'OMP_NUM_THREADS={threads} keeps them',
            file=sys.stderr,
        )


def check_arguments(arguments: Sequence[str]) -> None:
    """Check that no argument is empty, which would be read as one that was left out, or as the present folder.

    Raises:
        UsageError: If one is.
    """
    for before, argument in pairwise(['the name of the tool', *arguments]):
        if not argument or (argument.startswith('--') and argument.find('=') == len(argument) - 1):
            place = f'after {before}' if not argument else f'of {argument[:-1]}'
            raise UsageError(f'the argument {place} is empty: is a variable of the shell not set?')


def show_progress(text: str) -> None:
    """Replace the last line of a terminal; where stderr is a file, nothing is written."""
    if sys.stderr.isatty():
        print(f'\r\033[K{text}', end='', file=sys.stderr, flush=True)


def run(main: Callable[[], None]) -> None:
    """Run a tool and exit with its status.

    A user's mistake ends in one sentence on stderr and status 2, a run that cannot go on in status 1. Ctrl-C gives
    status 130, SIGTERM 143, and other signals 128 and their number, as in a shell; every ``finally`` has run by then.
    Under torchrun an error is also written where torchrun looks for it, so that its summary shows the first one.
    """
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        main = record(main)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')  # names of classes and files, in an ASCII locale
    limit_threads()
    try:
        check_arguments(sys.argv[1:])
        with listening():
            main()
        leave_process_group()
    except (UsageError, RunError) as error:
        print(f'error: {error}', file=sys.stderr)
        leave(USAGE_STATUS if isinstance(error, UsageError) else FAILED_STATUS)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        leave(INTERRUPTED_STATUS)
    except Terminated as terminated:
        for number in TERMINATION_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # this process is ending already
        with suppress(OSError):  # the terminal may be closed
            print('terminated', file=sys.stderr)
        leave(terminated.status)


def leave(status: int) -> None:
    """End the process; in a distributed run at once, since gloo's threads abort a process that ends slowly."""
    if distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
