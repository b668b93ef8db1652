"""What the command-line tools share: arguments of the same name and meaning, and how they end."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import record

from ..common.errors import RunError, UsageError
from ..common.processors import usable_processors
from ..configuration.cfg_options import add_cfg_options
from ..training.hooks.termination import REQUESTS, Terminated, listening
from ..training.launchers import find_launcher

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
FAILED_STATUS = 1
USAGE_STATUS = 2
INTERRUPTED_STATUS = 130
THREADS_SET_BY = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')  # where torch looks


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing have in common."""
    parser.add_argument('--work-dir', metavar='DIR', help='folder of logs and checkpoints [work_dirs/CONFIG]')
    parser.add_argument('--data-root', metavar='DIR', help="another folder in the same layout, COCO's or ImageNet's")
    parser.add_argument(
        '--launcher', choices=LAUNCHERS, default=None, help='how the processes were started [found in the environment]'
    )
    add_cfg_options(parser)
    parser.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)  # older launchers pass it


def launcher_of(arguments: argparse.Namespace) -> str:
    """Return the launcher that was named or that the environment shows; see :func:`.launching.find_launcher`."""
    if arguments.local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(arguments.local_rank))
    return find_launcher(arguments.launcher)


def leave_process_group() -> None:
    """End the work of several processes together, if there are several.

    A process that just exits may be aborted: gloo's threads need the interpreter to release their last tensors.
    After an error nobody waits here, since the others may wait for a message that will not come.
    """
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def fit_threads() -> None:
    """Compute on no more threads than there are processors for this process; what the environment says is kept.

    torch takes all processors of the machine, though a container may have the time of a few only.
    """
    usable, threads = usable_processors(), torch.get_num_threads()
    if threads > usable and not any(os.environ.get(name) for name in THREADS_SET_BY):
        torch.set_num_threads(usable)
        print(
            f'{usable} of {threads} threads, since this process may use no more processors: '
            f'OMP_NUM_THREADS={threads} keeps them',
            file=sys.stderr,
        )


def show_progress(text: str) -> None:
    """Keep one line of a terminal up to date; a log file gets nothing."""
    if sys.stderr.isatty():
        print(f'\r\033[K{text}', end='', file=sys.stderr, flush=True)


def run(main: Callable[[], None]) -> None:
    """Run a tool. A user's mistake ends in one sentence on stderr and status 2, a run that cannot go on in status 1.

    Ctrl-C gives status 130, SIGTERM 143 and other signals 128 and their number, as in a shell, after what stands in a
    ``finally``. Under torchrun an error is also noted where torchrun looks for it, so that its summary shows the one
    that came first.
    """
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        main = record(main)
    fit_threads()
    try:
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
        for number in REQUESTS:
            signal.signal(number, signal.SIG_IGN)  # it is on its way
        with suppress(OSError):  # the terminal may be closed
            print('terminated', file=sys.stderr)
        leave(terminated.status)


def leave(status: int) -> None:
    """End the process; at once where others may wait for it, since gloo's threads abort one that ends slowly."""
    if distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
