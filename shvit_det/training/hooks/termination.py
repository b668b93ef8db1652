"""The signals that clusters and terminals send before they take a machine away: the run saves where it is and ends."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from mmengine.dist import is_distributed, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import Runner
from torch import distributed

from ...registry import HOOKS, register
from ..loader_workers import kill_workers
from ..loop import ResumableEpochLoop
from .safe_checkpoint import INTERRUPTED, point_at

# Slurm can warn by SIGUSR1 and Grid Engine by SIGUSR2, a terminal that is closed sends SIGHUP, all others SIGTERM.
REQUESTS = [getattr(signal, name) for name in ('SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2') if hasattr(signal, name)]
# Slurm signals every process and torchrun hands on what it got: one request reaches a process twice.
SAME_REQUEST_S = 5.0


class Terminated(BaseException):
    """The run was told to end; what there was to save has been saved.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


class Requests:
    """Receives signals to end. The first is noted, or ends the process where there is nothing to save.

    The same signal again is impatience, and ends the process at once; another one is a second warning of one event.
    """

    def __init__(self) -> None:
        self.can_save = False
        self._times: dict[int, float] = {}
        self._process = os.getpid()

    @property
    def received(self) -> int:
        """The signal that came first; 0 if none has come."""
        return next(iter(self._times), 0)

    def receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # in a process that was forked with this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if now - self._times.setdefault(number, now) > SAME_REQUEST_S:
            kill_workers()
            os._exit(128 + number)
        if not self.can_save:
            raise Terminated(number)


def is_ours_to_receive(handler: Any) -> bool:
    """Return whether nobody but us handles a signal, from what :func:`signal.getsignal` returned."""
    return handler == signal.SIG_DFL or isinstance(getattr(handler, '__self__', None), Requests)


_active: list[Requests] = []


@contextmanager
def listening() -> Iterator[Requests]:
    """Receive signals to end within the context; :class:`TerminationHook` acts on them while a run trains.

    Those that are ignored stay so, as SIGHUP under ``nohup``, and so does what the program around has its own use for;
    but SIGTERM is always received.

    Raises:
        Terminated: Where the process is when the signal comes, if there is nothing to save.
    """
    requests = Requests()
    before = {
        number: signal.signal(number, requests.receive)
        for number in REQUESTS
        if number == signal.SIGTERM or is_ours_to_receive(signal.getsignal(number))
    }
    _active.append(requests)
    try:
        yield requests
    finally:
        _active.remove(requests)
        for number, handler in before.items():
            signal.signal(number, handler)


@register(HOOKS)
class TerminationHook(Hook):
    """Save after the present step and raise :exc:`.Terminated`, once a signal to end came. Part of our runner.

    Several processes stop after the same step: each hands on which signal it got, through a group of its own on
    the CPU, and reads what came of that one step later, so that nothing waits for it.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._requests: Requests | None = None
        self._group: Any = None
        self._pending: tuple[torch.Tensor, Any] | None = None

    def before_train(self, runner: Runner) -> None:
        self._requests = _active[-1] if _active else None
        if self._requests:
            self._requests.can_save = True
        if is_distributed():
            self._group = distributed.new_group(backend='gloo')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None, outputs: dict | None = None
    ) -> None:
        if signalled := self._all_know():
            meta = dict(epoch=runner.epoch, iter=runner.iter + 1)
            if isinstance(runner.train_loop, ResumableEpochLoop):
                meta.update(batch=batch_idx + 1, num_batches=len(runner.train_dataloader))
            self._save(runner, meta)
            if self._group is not None:
                distributed.barrier(self._group)
            raise Terminated(signalled)

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: Sequence | None = None,
    ) -> None:
        if self._requests and self._requests.received:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # puts the averages out of the model again
            self._save(runner, dict(epoch=runner.epoch, iter=runner.iter))
            raise Terminated(self._requests.received)

    def after_train(self, runner: Runner) -> None:
        if self._pending:
            self._pending[1].wait()
        if self._requests:
            self._requests.can_save = False

    def _all_know(self) -> int:
        """Return the signal that a process got, the highest of several, or 0; all of them hear the same."""
        own = self._requests.received if self._requests else 0
        if self._group is None:
            return own
        known = 0
        if self._pending:
            signalled, work = self._pending
            work.wait()
            known = int(signalled.item())
        signalled = torch.tensor([own])
        work = distributed.all_reduce(signalled, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = signalled, work
        return known

    def _save(self, runner: Runner, meta: dict) -> None:
        if getattr(runner, 'saved_iter', None) == meta['iter']:
            return
        runner.save_checkpoint(runner.work_dir, INTERRUPTED, meta=meta, by_epoch=False)
        if is_main_process():
            point_at(runner, os.path.join(runner.work_dir, INTERRUPTED))
