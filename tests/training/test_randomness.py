"""Random numbers of a run: the same for the same place in it, whatever happened before."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from shvit_det.training import seeding
from shvit_det.training.seeding import ResumableBatches, seed_everything, with_seeded_samples


class Noise(Dataset):
    """Samples with three kinds of random numbers beside their index."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> list[float]:
        return [index, random.random(), np.random.rand(), torch.rand(()).item()]


class Shuffled(torch.utils.data.Sampler):
    """An order that depends on the epoch, as mmengine's sampler has it; for one of several processes."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.epoch, self.rank, self.world_size = 0, rank, world_size

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(7).tolist()
        return iter(order[self.rank :: self.world_size])

    def __len__(self) -> int:
        return 7


def epochs_of(num_workers: int, count: int = 2, **options) -> list[list]:
    sampler = Shuffled()
    loader = with_seeded_samples(
        DataLoader(Noise(), 2, sampler=sampler, num_workers=num_workers, collate_fn=list, **options), seed=5
    )
    epochs = []
    for epoch in range(count):
        sampler.epoch = epoch
        epochs.append([sample for batch in loader for sample in batch])
        random.seed(), np.random.seed(), torch.seed()  # what happens between epochs does not matter
    return epochs


def test_samples_are_the_same_with_any_number_of_workers():
    alone = epochs_of(0)
    assert alone == epochs_of(2, persistent_workers=True)
    assert alone == epochs_of(1)
    flat = [sample[1:] for epoch in alone for sample in epoch]
    assert len({tuple(numbers) for numbers in flat}) == 14  # and yet no two have the same numbers


def test_an_epoch_begins_at_any_batch():
    whole = epochs_of(0, 3)
    sampler = Shuffled()
    sampler.epoch = 2
    loader = with_seeded_samples(DataLoader(Noise(), 2, sampler=sampler, collate_fn=list), seed=5)
    loader.batch_sampler.start(2, first=3)
    assert [sample for batch in loader for sample in batch] == whole[2][6:]
    sampler.epoch = 3
    assert len(list(loader)) == 4 and len(loader) == 4


def test_several_processes_share_the_samples_of_one(monkeypatch):
    (whole,) = epochs_of(0, 1)
    samples = []
    for rank in range(2):
        monkeypatch.setattr(seeding, 'get_dist_info', lambda rank=rank: (rank, 2))
        loader = with_seeded_samples(DataLoader(Noise(), 1, sampler=Shuffled(rank, 2), collate_fn=list), seed=5)
        samples.extend(sample for batch in loader for sample in batch)
    assert sorted(samples) == sorted(whole)


def test_a_data_set_stays_what_it_is_and_takes_another_pipeline():
    loader = DataLoader(Noise(), 2)
    seeded = with_seeded_samples(loader, 5)
    assert seeded.dataset is loader.dataset and isinstance(seeded.dataset, Noise)
    assert with_seeded_samples(DataLoader([1, 2, 3], 2, collate_fn=list), 5).__iter__().__next__() == [1, 2]
    no_batches = DataLoader(Noise(), batch_size=None)
    assert with_seeded_samples(no_batches, 5) is no_batches


def test_batches_keep_what_others_ask_of_a_batch_sampler():
    batches = ResumableBatches(BatchSampler(Shuffled(), 3, drop_last=True))
    assert (len(batches), batches.batch_size, batches.drop_last) == (2, 3, True)
    assert isinstance(batches.sampler, Shuffled)


@pytest.mark.parametrize('devices', [False, True])
def test_seeds_of_several_numbers(devices):
    def drawn(*numbers):
        seed_everything(*numbers, devices=devices)
        return random.random(), np.random.rand(), torch.rand(()).item()

    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    assert len({drawn(1, 2, 3), drawn(1, 3, 2), drawn(2, 2, 3), drawn(1, 2)}) == 4
