"""The epoch loop that can resume within an epoch."""

from itertools import islice
from typing import Any

from mmengine.runner import EpochBasedTrainLoop

from ..registry import LOOPS, register
from .seeding import ResumableBatches


@register(LOOPS)
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop``, resumed exactly where a checkpoint was written. It takes the same arguments.

    mmengine resumes only at the start of an epoch, and skips the evaluation that a killed run had not finished.
    """

    _first_batch = 0
    _owes_evaluation = False

    def resume_at(self, first_batch: int, owes_evaluation: bool) -> None:
        """Set the batch to begin with, and whether the epoch before it still has to be evaluated."""
        self._first_batch, self._owes_evaluation = first_batch, owes_evaluation

    def run(self) -> Any:
        self.runner.call_hook('before_train')
        if self._owes_evaluation:
            self._evaluate_if_due()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._evaluate_if_due()
        self.runner.call_hook('after_train')
        return self.runner.model

    def _evaluate_if_due(self) -> None:
        self._decide_current_val_interval()
        if self.runner.val_loop is None or self._epoch < self.val_begin:
            return
        if self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs:
            self.runner.val_loop.run()

    def run_epoch(self) -> None:
        first, self._first_batch = self._first_batch, 0
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        batches = self.dataloader.batch_sampler
        if isinstance(batches, ResumableBatches):
            batches.start(self._epoch, first)
            loaded = iter(self.dataloader)
        else:
            loaded = islice(self.dataloader, first, None)
        for number, batch in enumerate(loaded, start=first):
            self.run_iter(number, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
