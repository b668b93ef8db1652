"""What a run has before it: images and steps at its beginning, and after a few steps the time that they will take."""

import time
from collections.abc import Sized
from datetime import datetime, timedelta
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import EpochBasedTrainLoop, Runner

from ...common.durations import counted, duration
from ...data.checking.findings import short
from ...registry import HOOKS, register
from ..schedules import without_effect

WARM_UP = 2  # steps that are slower than those after them
MEASURED = 10


@register(HOOKS)
class RunSummaryHook(Hook):
    """Log the number of images, classes and steps, and after a few steps how long an epoch takes and when all end."""

    priority = 'LOWEST'
    _steps = 0
    _begin = 0.0

    def before_train(self, runner: Runner) -> None:
        runner.logger.info(summary(runner))
        for sentence in without_effect(runner.param_schedulers, dict(epoch=runner.max_epochs, step=runner.max_iters)):
            runner.logger.warning(sentence)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None, outputs: dict | None = None
    ) -> None:
        self._steps += 1
        if self._steps == WARM_UP:
            self._begin = time.monotonic()
        elif self._steps == WARM_UP + MEASURED:
            left = runner.max_iters - runner.iter - 1
            if left > 0:
                step_s = (time.monotonic() - self._begin) / MEASURED
                runner.logger.info(outlook(runner, step_s, left, datetime.now()))


def summary(runner: Any) -> str:
    """Return the number of images, steps and classes of a run."""
    loop = runner.train_loop
    loader = loop.dataloader
    size = getattr(loader.batch_sampler, 'batch_size', None)
    batch = '' if size is None else f' of {counted(size * get_world_size(), "image")}'
    if isinstance(loop, EpochBasedTrainLoop):
        length = f'{counted(loop.max_epochs, "epoch")} of {counted(len(loader), "step")}{batch}'
    else:
        length = f'{counted(loop.max_iters, "step")}{batch}'
    images = f'on {counted(len(loader.dataset), "image")}, ' if isinstance(loader.dataset, Sized) else ''
    text = f'training {images}{length}'
    if runner.val_loop is not None:
        text += f'; validation on {counted(len(runner.val_loop.dataloader.dataset), "image")}'
    classes = (getattr(loader.dataset, 'metainfo', None) or {}).get('classes')
    if isinstance(classes, tuple | list):
        text += f'; {counted(len(classes), "class")}: {short(tuple(classes))}'
    return text


def outlook(runner: Any, step_s: float, left: int, now: datetime) -> str:
    """Return how long an epoch takes, and when the last of the steps that are left will end."""
    epoch = ''
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        epoch = f' and an epoch {duration(step_s * len(runner.train_loop.dataloader))}'
    end = now + timedelta(seconds=step_s * left)
    clock = f'{end:%H:%M}' if end.date() == now.date() else f'{end:%H:%M on %Y-%m-%d}'
    beside = ', and later by the time of the validations' if runner.val_loop is not None else ''
    return f'a step takes {step_s:.2g} s{epoch}: the last one ends at about {clock}{beside}'
