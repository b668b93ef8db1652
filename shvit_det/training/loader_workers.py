"""Workers of a loader: which signals reach them, and how they end with the process that they work for."""

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
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

EVERY_S = 2.0
# A terminal, slurm, systemd and torchrun signal all processes of a run, and it is the main process that has to answer:
# until then it needs the batches of its workers.
NOT_FOR_WORKERS = {
    getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2') if hasattr(signal, name)
}


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the signals that are not for workers; a process that is started within keeps them blocked."""
    if not hasattr(signal, 'pthread_sigmask'):  # Windows signals no groups of processes
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_WORKERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Worker(BaseProcess):
    """A process that no signal to the whole run reaches, from its first moment on, and that its parent ends by a kill.

    torch and multiprocessing would end it by SIGTERM.
    """

    _popen: Any

    def start(self) -> None:
        with signals_blocked():
            super().start()
        self._popen.terminate = partial(kill, weakref.proxy(self._popen))


def kill(worker: Any) -> None:
    """Kill a worker, given as multiprocessing's ``Popen``, also one that is stuck in C."""
    in_main = threading.current_thread() is threading.main_thread() and hasattr(signal, 'SIGCHLD')
    # torch has a handler that takes this end of a worker for a failure
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main else None
    worker.kill()
    worker.wait(EVERY_S)
    if before is not None:
        signal.signal(signal.SIGCHLD, before)


class SpawnedWorker(Worker, SpawnProcess):
    """A worker in a new Python."""


class SpawnedWorkers(SpawnContext):
    """Starts workers in new Pythons."""

    Process = SpawnedWorker


CONTEXTS: dict[str, Any] = {'spawn': SpawnedWorkers()}

if sys.platform != 'win32':
    from multiprocessing.context import ForkContext, ForkProcess, ForkServerContext, ForkServerProcess

    class ForkedWorker(Worker, ForkProcess):
        """A worker that is a copy of this process."""

    class ForkedWorkers(ForkContext):
        """Starts workers as copies of this process."""

        Process = ForkedWorker

    class ServedWorker(Worker, ForkServerProcess):
        """A worker that a server process forks."""

    class ServedWorkers(ForkServerContext):
        """Lets a server process fork workers."""

        Process = ServedWorker

    CONTEXTS.update(fork=ForkedWorkers(), forkserver=ServedWorkers())


class EndingWithParent:
    """What a loader calls in each worker at its start: the worker ends soon after its parent, however that ended.

    torch's worker sees by itself that its parent was killed, but then waits until the samples that it has loaded are
    taken, which nobody does any more: with samples larger than a pipe holds it stays for ever, with its memory.

    Args:
        then: What the loader would have called.
    """

    def __init__(self, then: Callable[[int], Any] | None) -> None:
        self._then = then

    def __call__(self, worker: int) -> None:
        threading.Thread(target=end_with_parent, name='end-with-parent', daemon=True).start()
        if self._then is not None:
            self._then(worker)


def guard(loader: DataLoader) -> None:
    """Let the workers of a loader end with this process and keep from them the signals that are for this process."""
    if loader.num_workers and not isinstance(loader.worker_init_fn, EndingWithParent):
        context: Any = loader.multiprocessing_context or multiprocessing
        method = context.get_start_method()
        if method != 'fork' and sys.platform != 'win32':
            with signals_blocked():  # for the process that keeps count of what the others share
                resource_tracker.ensure_running()
        loader.multiprocessing_context = CONTEXTS[method]
        loader.worker_init_fn = EndingWithParent(loader.worker_init_fn)


def end_with_parent() -> None:
    """End this process, without any more work, once its parent is gone."""
    parent: Any = multiprocessing.parent_process()
    started_by = os.getppid()  # the parent, or the server that forks for it
    while parent.is_alive() and os.getppid() == started_by:
        parent.join(EVERY_S)
    os._exit(1)


def kill_workers() -> None:
    """Kill the workers of this process, which ends now and waits for nobody."""
    for process in multiprocessing.active_children():
        if isinstance(process, Worker):
            process.terminate()
