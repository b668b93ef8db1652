"""Random numbers that depend on the position in a run only, so that a resumed run draws those of an uninterrupted one.

Saving the states of all generators would not give that: the loader's workers have generators of their own, which are
ahead of the training by the prefetched batches. So only the seed of the run is saved, and all generators are seeded:

- before each iteration, from (seed, iteration, rank), by ``StepSeedHook``;
- before each training image is loaded and augmented, from (seed, epoch, position in the epoch), by the loader of
  :func:`with_seeded_samples`. The order of the images is a function of (seed, epoch) in mmengine's samplers.

The augmented images are then the same with any number of workers, and with any number of processes as long as the total
batch has the same size. The exception is a transform that keeps images of earlier calls (mmdet's ``CachedMosaic`` and
``CachedMixUp``), whose cache starts empty in a new worker.
"""

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_dist_info
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

STEP, SAMPLE = 0, 1  # the first number of a seed, so that iterations and images never share one


def seed_everything(*numbers: int, devices: bool = False) -> None:
    """Seed Python, numpy and torch from several integers >= 0; ``devices`` seeds the accelerators too."""
    words = [int(word) for word in np.random.SeedSequence(numbers).generate_state(4)]
    random.seed(words[0])
    np.random.seed(words[1])
    # a worker of the loader must not touch the devices
    seed_torch = torch.manual_seed if devices else torch.default_generator.manual_seed
    seed_torch(words[2] << 32 | words[3])


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Leave the random numbers that a program draws afterwards as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


class SampleIndex(NamedTuple):
    """The index of a sample in the data set, with its epoch and its position in the order of that epoch."""

    epoch: int
    position: int
    sample: int


class ResumableBatches(Sampler):
    """A batch sampler that yields another's batches as lists of :class:`SampleIndex`, from any batch of any epoch on.

    Batches before the first one are skipped without loading an image.
    """

    def __init__(self, batches: Any) -> None:
        self._batches = batches
        self.sampler = getattr(batches, 'sampler', None)
        self.batch_size = getattr(batches, 'batch_size', None)
        self.drop_last = getattr(batches, 'drop_last', False)
        self._epoch = self._first = 0

    def start(self, epoch: int, first: int = 0) -> None:
        """Set where the next iteration begins; without a call it is the first batch of the next epoch."""
        self._epoch, self._first = epoch, first

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        epoch, first = self._epoch, self._first
        self._epoch, self._first = epoch + 1, 0
        rank, world_size = get_dist_info()
        position = 0
        for number, batch in enumerate(self._batches):
            if number >= first:
                yield [SampleIndex(epoch, (position + i) * world_size + rank, sample) for i, sample in enumerate(batch)]
            position += len(batch)

    def __len__(self) -> int:
        return len(self._batches)


class SeededSamples(Dataset):
    """A data set indexed by lists of :class:`SampleIndex` that seeds everything before it loads each sample."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self._dataset = dataset
        self._seed = seed

    def __getitems__(self, indices: Sequence[SampleIndex]) -> list:
        return [self._load(index) for index in indices]

    def _load(self, index: SampleIndex) -> Any:
        seed_everything(self._seed, SAMPLE, index.epoch, index.position)
        return self._dataset[index.sample]

    def __len__(self) -> int:
        return len(self._dataset)


def with_seeded_samples(loader: DataLoader, seed: int) -> DataLoader:
    """Return a loader of the same batches that loads every sample with a seed of its own.

    A loader without batches of indices (an iterable data set, or no automatic batches) is returned unchanged.
    """
    if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        return loader
    samples = SeededSamples(loader.dataset, seed)
    dataset: Any = samples
    if hasattr(loader.dataset, '__dict__'):
        # torch's fetcher calls this method for whole batches. The data set stays the object that hooks look into,
        # and whose pipeline they may replace.
        dataset = loader.dataset
        dataset.__getitems__ = samples.__getitems__
    seeded = copy.copy(loader)
    # torch forbids setting these two on a loader; every other setting is kept
    vars(seeded).update(dataset=dataset, batch_sampler=ResumableBatches(loader.batch_sampler))
    return seeded
