"""Randomness that depends on where a run is, and not on how it came there.

A resumed run has to draw the random numbers that the uninterrupted one would have drawn. Saving the states of all
generators does not give that: those of the loader's workers are in other processes, ahead of the training by what was
prefetched, and shared out in another way with every number of workers. So nothing is saved but the seed of the run:

- before each iteration Python, numpy and torch are seeded by (seed, iteration, rank);
- before each training image is loaded and augmented they are seeded by (seed, epoch, place in the epoch's order),
  wherever that happens. The order itself is a function of (seed, epoch) in mmengine's samplers.

The augmented images are then the same with any number of workers and with any number of processes whose batches
together have the same size. The exception is a transform that keeps images of earlier calls (mmdet's ``CachedMosaic``
and ``CachedMixUp``): its cache is as old as its worker.
"""

import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ...registry import HOOKS, register

STEP, SAMPLE = 0, 1  # keeps the two kinds of seeds apart


class Draw(NamedTuple):
    """One place in the order of an epoch."""

    epoch: int
    place: int
    sample: int


def seed_everything(*numbers: int, devices: bool = False) -> None:
    """Seed Python, numpy and torch, also on accelerators if ``devices``, by several whole numbers from 0 on."""
    words = [int(word) for word in np.random.SeedSequence(numbers).generate_state(4)]
    random.seed(words[0])
    np.random.seed(words[1])
    # a worker of the loader must not touch the devices
    seed_torch = torch.manual_seed if devices else torch.default_generator.manual_seed
    seed_torch(words[2] << 32 | words[3])


class NumberedBatches(Sampler):
    """The batches of a batch sampler as lists of :class:`Draw`, from any batch of any epoch on.

    Batches before the first one wanted are passed over without loading an image.

    Args:
        batches: The batch sampler; ``sampler`` and ``batch_size`` are taken from it.
    """

    def __init__(self, batches: Any) -> None:
        self._batches = batches
        self.sampler = getattr(batches, 'sampler', None)
        self.batch_size = getattr(batches, 'batch_size', None)
        self.drop_last = getattr(batches, 'drop_last', False)
        self._epoch = self._first = 0

    def start(self, epoch: int, first: int = 0) -> None:
        """Set where the next pass begins; without a call it is the next epoch's first batch."""
        self._epoch, self._first = epoch, first

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, first = self._epoch, self._first
        self._epoch, self._first = epoch + 1, 0
        rank, world_size = get_dist_info()
        place = 0
        for number, batch in enumerate(self._batches):
            if number >= first:
                yield [Draw(epoch, (place + i) * world_size + rank, sample) for i, sample in enumerate(batch)]
            place += len(batch)

    def __len__(self) -> int:
        return len(self._batches)


class SeededSamples(Dataset):
    """What loads the samples of a data set by their draws, each with its own seed."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self._dataset = dataset
        self._seed = seed

    def __getitems__(self, draws: Sequence[Draw]) -> list:
        return [self._load(draw) for draw in draws]

    def _load(self, draw: Draw) -> Any:
        seed_everything(self._seed, SAMPLE, draw.epoch, draw.place)
        return self._dataset[draw.sample]

    def __len__(self) -> int:
        return len(self._dataset)


def reproducible(loader: DataLoader, seed: int) -> DataLoader:
    """Return a loader of the same batches whose samples have seeds of their own.

    A loader that makes no batches of indices (an iterable data set, no automatic batches) is returned as it is.
    """
    if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        return loader
    samples = SeededSamples(loader.dataset, seed)
    dataset: Any = samples
    if hasattr(loader.dataset, '__dict__'):
        # torch's fetcher asks a data set for whole batches by this method; the data set stays what it is for the
        # hooks that look into it or exchange its pipeline
        dataset = loader.dataset
        dataset.__getitems__ = samples.__getitems__
    seeded = copy.copy(loader)
    # past the guard that torch has on both, and so with all other settings of the loader as they are
    vars(seeded).update(dataset=dataset, batch_sampler=NumberedBatches(loader.batch_sampler))
    return seeded


@register(HOOKS)
class StepSeedHook(Hook):
    """Seed everything before each training iteration by the run's seed and the iteration. Part of our runner."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None) -> None:
        seed_everything(runner.seed, STEP, runner.iter, runner.rank, devices=True)
