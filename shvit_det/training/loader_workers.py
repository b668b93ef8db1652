"""Workers of a data loader: shielded from signals to the whole run, and ended together with the main process."""

import copy
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

from ..common.errors import RunError

POLL_INTERVAL_S = 2.0
# Slurm can warn by SIGUSR1 and Grid Engine by SIGUSR2, a terminal that is closed sends SIGHUP, all others SIGTERM.
TERMINATION_SIGNALS = [
    getattr(signal, name) for name in ('SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2') if hasattr(signal, name)
]
# A terminal, slurm, systemd and torchrun signal all processes of a run. Only the main process acts on that, and until
# it has saved a checkpoint it needs the batches of its workers.
BLOCKED_SIGNALS = {signal.SIGINT, *TERMINATION_SIGNALS}


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block these signals; a process that is started within the context keeps them blocked."""
    if not hasattr(signal, 'pthread_sigmask'):  # Windows does not signal groups of processes
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Worker(BaseProcess):
    """A process that is shielded from signals to the whole run from its start, and that its parent ends with SIGKILL.

    torch and multiprocessing would end it with SIGTERM, which is blocked.
    """

    _popen: Any

    def start(self) -> None:
        with signals_blocked():
            super().start()
        self._popen.terminate = partial(kill, weakref.proxy(self._popen))


def kill(worker: Any) -> None:
    """Kill a worker, given as multiprocessing's ``Popen``, even one that is stuck in C code."""
    in_main = threading.current_thread() is threading.main_thread() and hasattr(signal, 'SIGCHLD')
    # torch's handler would report the killed worker as a failure
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main else None
    worker.kill()
    worker.wait(POLL_INTERVAL_S)
    if before is not None:
        signal.signal(signal.SIGCHLD, before)


class SpawnWorker(Worker, SpawnProcess):
    """A worker in a new Python process."""


WORKERS: dict[str, type[Worker]] = {'spawn': SpawnWorker}

if sys.platform != 'win32':
    from multiprocessing.context import ForkProcess, ForkServerProcess

    class ForkWorker(Worker, ForkProcess):
        """A worker that is a copy of this process."""

    class ForkServerWorker(Worker, ForkServerProcess):
        """A worker that multiprocessing's fork server forks."""

    WORKERS.update(fork=ForkWorker, forkserver=ForkServerWorker)


def end_with_parent() -> None:
    """End this process at once when its parent is gone."""
    parent: Any = multiprocessing.parent_process()
    started_by = os.getppid()  # the parent, or the fork server
    while parent.is_alive() and os.getppid() == started_by:
        parent.join(POLL_INTERVAL_S)
    os._exit(1)


def watch_parent(then: Callable[[int], Any] | None, worker: int) -> None:
    """Let a worker end soon after its parent, however the parent ended, and do what the loader has its workers do.

    torch's worker notices a killed parent by itself, but then waits until its loaded samples are taken. With samples
    larger than a pipe's buffer it would stay forever, with all its memory.
    """
    threading.Thread(target=end_with_parent, name='end-with-parent', daemon=True).start()
    if then is not None:
        then(worker)


def guard_workers(loader: DataLoader) -> None:
    """Make the workers of a loader end with this process, and shield them from the signals that it acts on."""
    if loader.num_workers and getattr(loader.worker_init_fn, 'func', None) is not watch_parent:
        given: Any = loader.multiprocessing_context or multiprocessing
        method = given.get_start_method()
        if method != 'fork' and sys.platform != 'win32':
            with signals_blocked():  # for multiprocessing's resource tracker, a process too
                resource_tracker.ensure_running()
        context: Any = copy.copy(multiprocessing.get_context(method))
        context.Process = WORKERS[method]
        loader.multiprocessing_context = context
        loader.worker_init_fn = partial(watch_parent, loader.worker_init_fn)


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Reduce a ``RunError`` of a worker to its sentence: torch raises it again with a whole traceback."""
    try:
        yield
    except RunError as error:
        text, name = str(error), f'{RunError.__module__}.{RunError.__qualname__}: '
        raise RunError(text.rsplit(name, 1)[-1].strip() if text.startswith('Caught ') else text) from error


def kill_workers() -> None:
    """Kill all workers of this process, before it ends without waiting for them."""
    for process in multiprocessing.active_children():
        if isinstance(process, Worker):
            process.terminate()
