"""What the command-line tools share: arguments of the same name and meaning, and how they end."""

import argparse
import os
import sys
from collections.abc import Callable

from mmengine.config import DictAction
from torch import distributed

from ..errors import UsageError

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
USAGE_STATUS = 2
INTERRUPTED_STATUS = 130


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing have in common."""
    parser.add_argument('--work-dir', metavar='DIR', help='folder of logs and checkpoints [work_dirs/CONFIG]')
    parser.add_argument('--data-root', metavar='DIR', help="another folder in the same layout, COCO's or ImageNet's")
    parser.add_argument(
        '--launcher', choices=LAUNCHERS, default=None, help='how the processes were started [pytorch under torchrun]'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='changes of the config: a.b.c=value'
    )
    parser.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)  # older launchers pass it


def launcher_of(arguments: argparse.Namespace) -> str:
    """Return the launcher that was named, or that torchrun left in the environment, or ``'none'``."""
    if arguments.local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(arguments.local_rank))
    return arguments.launcher or ('pytorch' if 'TORCHELASTIC_RUN_ID' in os.environ else 'none')


def leave_process_group() -> None:
    """End the work of several processes together, if there are several.

    A process that just exits may be aborted: gloo's threads need the interpreter to release their last tensors.
    After an error nobody waits here, since the others may wait for a message that will not come.
    """
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def show_progress(text: str) -> None:
    """Keep one line of a terminal up to date; a log file gets nothing."""
    if sys.stderr.isatty():
        print(f'\r\033[K{text}', end='', file=sys.stderr, flush=True)


def run(main: Callable[[], None]) -> None:
    """Run a tool; a user's mistake ends in one sentence on stderr and exit status 2, Ctrl-C in status 130."""
    try:
        main()
        leave_process_group()
    except UsageError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(USAGE_STATUS)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)
