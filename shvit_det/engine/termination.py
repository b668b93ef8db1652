"""SIGTERM, which clusters send before they take a machine away: the run saves where it is and ends."""

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

from ..registry import HOOKS, register
from .checkpoint_hook import INTERRUPTED, point_at
from .loop import ResumableEpochLoop

TERMINATED_STATUS = 128 + signal.SIGTERM
# Slurm signals every process and torchrun hands on what it got: one request reaches a process twice.
SAME_REQUEST_S = 5.0


class Terminated(BaseException):
    """The run was told to end; what there was to save has been saved."""


class Requests:
    """Receives SIGTERM. The first is noted, or ends the process where there is nothing to save; a second ends it."""

    def __init__(self) -> None:
        self.received_at: float | None = None
        self.can_save = False
        self._process = os.getpid()
        self._received_in_child = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A worker of the loader, forked with this handler. It has to deliver until the run has saved.
            if self._received_in_child:
                os._exit(TERMINATED_STATUS)
            self._received_in_child = True
            return
        if self.received_at is None:
            self.received_at = time.monotonic()
            if not self.can_save:
                raise Terminated
        elif not is_distributed() or time.monotonic() - self.received_at > SAME_REQUEST_S:
            os._exit(TERMINATED_STATUS)


_active: list[Requests] = []


@contextmanager
def listening() -> Iterator[Requests]:
    """Receive SIGTERM within the context; :class:`TerminationHook` acts on it while a run trains.

    Raises:
        Terminated: Where the process is when the signal comes, if there is nothing to save.
    """
    requests = Requests()
    before = signal.signal(signal.SIGTERM, requests.receive)
    _active.append(requests)
    try:
        yield requests
    finally:
        _active.remove(requests)
        signal.signal(signal.SIGTERM, before)


@register(HOOKS)
class TerminationHook(Hook):
    """Save after the present step and raise :exc:`.Terminated`, once SIGTERM was received. Part of our runner.

    Several processes stop after the same step: each hands on whether it was signalled, through a group of its own on
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
        if self._all_know():
            meta = dict(epoch=runner.epoch, iter=runner.iter + 1)
            if isinstance(runner.train_loop, ResumableEpochLoop):
                meta.update(batch=batch_idx + 1, num_batches=len(runner.train_dataloader))
            self._save(runner, meta)
            if self._group is not None:
                distributed.barrier(self._group)
            raise Terminated

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: Sequence | None = None,
    ) -> None:
        if self._requests and self._requests.received_at is not None:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # puts the averages out of the model again
            self._save(runner, dict(epoch=runner.epoch, iter=runner.iter))
            raise Terminated

    def after_train(self, runner: Runner) -> None:
        if self._pending:
            self._pending[1].wait()
        if self._requests:
            self._requests.can_save = False

    def _all_know(self) -> bool:
        """Tell whether a process was signalled; all of them hear the same."""
        own = bool(self._requests and self._requests.received_at is not None)
        if self._group is None:
            return own
        known = False
        if self._pending:
            flag, work = self._pending
            work.wait()
            known = bool(flag.item())
        flag = torch.tensor([int(own)])
        work = distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = flag, work
        return known

    def _save(self, runner: Runner, meta: dict) -> None:
        if getattr(runner, 'saved_iter', None) == meta['iter']:
            return
        runner.save_checkpoint(runner.work_dir, INTERRUPTED, meta=meta, by_epoch=False)
        if is_main_process():
            point_at(runner, os.path.join(runner.work_dir, INTERRUPTED))
