"""Memory of large maps is used again, and never by two at once."""

import gc
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shvit_det.kernels import memory
from shvit_det.kernels.memory import LARGE, Pool, new_map, round_up, take

pytestmark = pytest.mark.slow

SIZE = 5 << 20


def test_what_nobody_has_is_lent_again():
    pool = Pool()
    first = pool.take(SIZE)
    assert len(first) >= SIZE and first.dtype is torch.uint8 and pool.kept() == 0
    place = first.data_ptr()
    del first
    assert pool.kept() == round_up(SIZE)
    assert pool.take(SIZE).data_ptr() == place


def test_what_somebody_has_is_not():
    pool = Pool()
    one, other = pool.take(SIZE), pool.take(SIZE)
    assert abs(one.data_ptr() - other.data_ptr()) >= round_up(SIZE)
    part = one[: 4 * 1024].view(torch.float32).view(32, 32)[3:]  # any view keeps all of it
    place = one.data_ptr()
    del one, other
    gc.collect()
    assert pool.kept() == round_up(SIZE)
    assert pool.take(SIZE).data_ptr() != place
    del part
    assert pool.take(SIZE).data_ptr() == place  # the one given back last


def test_other_sizes_get_memory_of_their_own():
    pool = Pool()
    place = pool.take(SIZE).data_ptr()
    assert pool.take(4 * SIZE).data_ptr() != place
    assert pool.take(SIZE - 1).data_ptr() == place  # about the same size is the same


def test_no_more_than_so_much_is_kept(monkeypatch):
    monkeypatch.setattr(memory, 'MOST', 3 * round_up(SIZE))
    pool = Pool()
    lent = [pool.take(SIZE) for _ in range(6)]
    places = [piece.data_ptr() for piece in lent]
    while lent:
        del lent[0]
        assert pool.kept() <= 3 * round_up(SIZE)
    assert pool.kept() == 3 * round_up(SIZE)
    assert pool.take(SIZE).data_ptr() == places[-1]  # those given back last are kept
    del lent
    large = pool.take(4 * round_up(SIZE))
    del large
    assert pool.kept() <= 3 * round_up(SIZE)


def test_memory_may_come_back_at_any_moment(monkeypatch):
    """The garbage collector runs in the middle of whatever allocates."""
    monkeypatch.setattr(memory, 'MOST', 2 * round_up(SIZE))
    pool = Pool()
    waiting = [pool.take(SIZE) for _ in range(4)]
    original = memory.round_up

    class Sized(int):
        def __eq__(self, other):  # compared while the lock is held
            if waiting:
                waiting.pop()
            return int(self) == other

        __hash__ = int.__hash__

    pool._free.append(torch.empty(original(SIZE), dtype=torch.uint8))
    monkeypatch.setattr(memory, 'round_up', lambda size: Sized(original(size)))
    taken = pool.take(SIZE)
    assert len(waiting) < 4 and len(taken) == original(SIZE)
    waiting.clear()
    assert pool.kept() == 2 * original(SIZE) and not pool._returned


def test_many_threads_do_not_share():
    pool = Pool()
    mixed = []

    def work(number):
        for _ in range(50):
            taken = pool.take(LARGE)
            part = taken[:: 1 << 16]
            part.fill_(number)
            if not bool((part == number).all()):
                mixed.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not mixed
    assert 0 < pool.kept() <= 2 * 8 * round_up(LARGE)  # a thread has the one before until it has the next


@given(st.integers(1, 1 << 34))
@settings(max_examples=200, deadline=None)
def test_sizes_are_rounded_to_few(size):
    rounded = round_up(size)
    assert size <= rounded <= size * 1.15 + 1
    assert round_up(rounded) == rounded


@pytest.mark.parametrize(('height', 'pooled'), [(16, False), (2048, True)])
def test_maps_lie_as_nhwc(monkeypatch, height, pooled):
    pool = Pool()
    monkeypatch.setattr(memory, 'POOL', pool)
    for dtype in (torch.float32, torch.bfloat16):
        made = new_map(torch.empty(1, dtype=dtype), 2, 32, height, 64)
        assert made.shape == (2, 32, height, 64) and made.dtype is dtype
        assert made.is_contiguous(memory_format=torch.channels_last)
        made.fill_(3)
        del made
        assert (pool.kept() > 0) is pooled
    assert len(take(100)) == 100
