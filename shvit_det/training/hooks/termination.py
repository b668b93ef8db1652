"""What happens at SIGTERM, and at the other signals that clusters and terminals send before they end a process.

:func:`listening` notes the signal, :class:`TerminationHook` saves a checkpoint after the present step and raises
:exc:`Terminated`, and the process ends with status 128 + the signal's number. ``--resume`` continues from there.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from mmengine.dist import is_distributed, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import distributed

from ...common.errors import first_line
from ...registry import HOOKS, register
from ..loader_workers import TERMINATION_SIGNALS, kill_workers
from ..loop import ResumableEpochLoop
from .safe_checkpoint import INTERRUPTED, point_at

# Slurm signals every process and torchrun passes its signal on, so a process can get one signal twice within seconds.
SAME_SIGNAL_S = 5.0


class Terminated(SystemExit):
    """The run was told to end by a signal of this number, and what there was to save has been saved.

    A program that does not catch it ends with the status that a shell reports for the signal.
    """

    def __init__(self, number: int) -> None:
        self.status = 128 + number
        super().__init__(self.status)


class ReceivedSignals:
    """Handles the signals. The first one is noted, or raises :exc:`Terminated` where there is nothing to save.

    The same signal again, later, ends the process at once; another signal is a second warning of the same event.
    """

    def __init__(self) -> None:
        self.can_save = False
        self._times: dict[int, float] = {}
        self._process = os.getpid()

    @property
    def first(self) -> int:
        """The signal that came first; 0 if none has come."""
        return next(iter(self._times), 0)

    def receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # in a process that was forked with this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if now - self._times.setdefault(number, now) > SAME_SIGNAL_S:
            kill_workers()
            os._exit(128 + number)
        if not self.can_save:
            raise Terminated(number)


def may_be_replaced(handler: Any) -> bool:
    """Return whether a handler, as :func:`signal.getsignal` returns it, is the default one or ours."""
    return handler == signal.SIG_DFL or isinstance(getattr(handler, '__self__', None), ReceivedSignals)


_active: list[ReceivedSignals] = []


@contextmanager
def listening() -> Iterator[ReceivedSignals]:
    """Receive the signals within the context. Our runner trains in one, and the tools run in one.

    A signal that is ignored stays so, as SIGHUP under ``nohup``, and so does one for which the program has a handler of
    its own; SIGTERM is always received. In another thread than the main one Python allows no handlers.

    Raises:
        Terminated: Wherever the process is when the signal comes, if there is nothing to save.
    """
    signals = ReceivedSignals()
    numbers = TERMINATION_SIGNALS if threading.current_thread() is threading.main_thread() else []
    before = {
        number: signal.signal(number, signals.receive)
        for number in numbers
        if number == signal.SIGTERM or may_be_replaced(signal.getsignal(number))
    }
    _active.append(signals)
    try:
        yield signals
    finally:
        _active.remove(signals)
        for number, handler in before.items():
            signal.signal(number, handler)


def signal_group(model_device: torch.device) -> tuple[Any, torch.device]:
    """Return a process group for passing signals on, and the device of its tensors.

    It is one on the CPU, so that the GPU is not waited for. Where that cannot be made, because gloo finds no network
    interface for instance, it is the run's own.
    """
    try:
        return distributed.new_group(backend='gloo'), torch.device('cpu')
    except RuntimeError as error:
        print_log(f'signals are passed on by {distributed.get_backend()}: gloo fails ({first_line(error)})', 'current')
        return distributed.group.WORLD, model_device


@register(HOOKS)
class TerminationHook(Hook):
    """Save after the present step and raise :exc:`Terminated`, once a signal has come within :func:`listening`.

    Several processes stop after the same step: each passes its signal on through a process group on the CPU, and reads
    the result one step later, so that no step waits for it.
    """

    priority = 'LOWEST'
    _signals: ReceivedSignals | None = None
    _group: Any = None
    _device = torch.device('cpu')
    _pending: tuple[torch.Tensor, Any] | None = None

    def before_train(self, runner: Runner) -> None:
        self._signals = _active[-1] if _active else None
        if self._signals:
            self._signals.can_save = True
        if is_distributed():
            self._group, self._device = signal_group(next(runner.model.parameters()).device)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None, outputs: dict | None = None
    ) -> None:
        if number := self._signal_of_any_process():
            meta = dict(epoch=runner.epoch, iter=runner.iter + 1)
            if isinstance(runner.train_loop, ResumableEpochLoop):
                meta.update(batch=batch_idx + 1, num_batches=len(runner.train_dataloader))
            self._save(runner, meta)
            if self._group is not None:
                distributed.barrier(self._group)
            raise Terminated(number)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None, outputs: Sequence | None = None
    ) -> None:
        if self._signals and self._signals.first:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # takes the averaged weights out of the model again
            self._save(runner, dict(epoch=runner.epoch, iter=runner.iter))
            raise Terminated(self._signals.first)

    def after_train(self, runner: Runner) -> None:
        if self._pending:
            self._pending[1].wait()
        if self._signals:
            self._signals.can_save = False

    def _signal_of_any_process(self) -> int:
        """Return the highest signal that any process has received, or 0; the same in all processes."""
        own = self._signals.first if self._signals else 0
        if self._group is None:
            return own
        highest = 0
        if self._pending:
            result, work = self._pending
            work.wait()
            highest = int(result.item())
        result = torch.tensor([own], device=self._device)
        work = distributed.all_reduce(result, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = result, work
        return highest

    def _save(self, runner: Runner, meta: dict) -> None:
        if getattr(runner, 'saved_iter', None) == meta['iter']:
            return
        runner.save_checkpoint(runner.work_dir, INTERRUPTED, meta=meta, by_epoch=False)
        if is_main_process():
            point_at(runner, os.path.join(runner.work_dir, INTERRUPTED))
