"""Workers of a loader that end with the process that they work for."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from typing import Any

EVERY_S = 2.0


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
        parent = multiprocessing.parent_process()
        if parent is not None:
            threading.Thread(target=end_with, args=(parent.pid,), name='end-with-parent', daemon=True).start()
        if self._then is not None:
            self._then(worker)


def end_with(parent: int | None) -> None:
    """End this process, without any more work, once ``parent`` is not its parent any more."""
    while os.getppid() == parent:
        time.sleep(EVERY_S)
    os._exit(1)
