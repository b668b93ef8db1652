"""The ceilings of a machine, on a clock that the test controls."""

from functools import partial

import pytest
import torch

from shvit_det import UsageError
from shvit_det.timing import ceilings
from shvit_det.timing.ceilings import PREPACKED_WAYS, WAYS, Work, measure_ceilings
from shvit_det.timing.clocks import CPUClock
from shvit_det.timing.cost import CostCounter

CPU = torch.device('cpu')
TICK = 0.001


class Clock(CPUClock):
    """Goes on by one tick a reading, and as far as the work says."""

    def __init__(self):
        self.now = 0.0

    def mark(self) -> float:
        self.now += TICK
        return self.now

    def work(self, durations, calls, *_):
        """A piece of work that takes these seconds one after the other, then the last one for ever; ticks included."""
        durations = list(durations)

        def call():
            calls.append(1)
            self.now += (durations.pop(0) if len(durations) > 1 else durations[0]) - TICK

        return Work(call, 6e9)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(ceilings, 'SIZES', (64,))
    monkeypatch.setattr(ceilings, 'COPY_BYTES', 2**20)
    monkeypatch.setattr(ceilings, 'PREPACKED_WAYS', {})
    return Clock()


def use(monkeypatch, **ways):
    monkeypatch.setattr(ceilings, 'WAYS', ways)


def test_the_best_of_all_ways_and_runs_is_the_ceiling(clock, monkeypatch):
    calls = []
    use(
        monkeypatch,
        steady=partial(clock.work, [0.004], calls),
        lucky=partial(clock.work, [0.001, 0.009, 0.009, 0.003, 0.009], calls),  # the first run is a warm-up
        slow=partial(clock.work, [0.005], calls),
    )
    result = measure_ceilings(CPU, torch.float32, 1.0, clock)
    assert result['matmul_gflop_s'] == pytest.approx(6 / 0.003)
    assert result['matmul_by'] == 'lucky, size 64'
    assert result['copy_gb_s'] == pytest.approx(2 * 2**20 / TICK / 1e9)


def test_a_way_is_repeated_for_its_share_of_the_time(clock, monkeypatch):
    calls = []
    use(monkeypatch, only=partial(clock.work, [0.01], calls))
    measure_ceilings(CPU, torch.float32, 2.0, clock)
    assert len(calls) == pytest.approx(2.0 * 0.8 / 4 / 0.01 + 1, abs=1)
    assert clock.now < 2.0


def test_sizes_grow_until_the_next_would_take_too_long(clock, monkeypatch):
    seen = []

    def way(device, dtype, size):
        seen.append(size)
        return clock.work([size**3 * 1e-9], [])

    monkeypatch.setattr(ceilings, 'SIZES', (128, 256, 512, 1024))
    use(monkeypatch, way=way)
    result = measure_ceilings(CPU, torch.float32, 1.0, clock)  # 0.2 s a size; 512 takes 0.13 s, 1024 would take 1.07
    assert seen == [128, 256, 512]
    assert result['matmul_by'] == 'way, size 128'  # the amounts are the same here


def test_what_torch_does_not_have_is_left_out_or_named(clock, monkeypatch):
    def missing(device, dtype, size):
        raise NotImplementedError('"addmm" not implemented for this dtype')

    use(monkeypatch, missing=missing, there=partial(clock.work, [0.002], []))
    assert measure_ceilings(CPU, torch.float32, 0.1, clock)['matmul_by'] == 'there, size 64'
    use(monkeypatch, missing=missing)
    with pytest.raises(UsageError, match=r'torch\.float16 on cpu'):
        measure_ceilings(CPU, torch.float16, 0.1, clock)


@pytest.mark.parametrize('name', WAYS)
@pytest.mark.parametrize('size', [64, 256])
def test_a_way_does_as_much_as_it_says(name, size):
    call, amount = WAYS[name](CPU, torch.float32, size)
    counter = CostCounter(lambda: name)
    with torch.no_grad(), counter:
        call()
    assert amount == 2 * counter.part_costs({})[0]['macs'] > 0


@pytest.mark.skipif(not ceilings.has_prepacked_operations(), reason='this torch has no prepacked operations of oneDNN')
@pytest.mark.parametrize('name', PREPACKED_WAYS)
def test_a_prepacked_way_computes_what_the_plain_one_does(name):
    results = []
    for ways, way in ((PREPACKED_WAYS, name), (WAYS, name.removeprefix('oneDNN prepacked '))):
        torch.manual_seed(0)
        with torch.no_grad():
            call, amount = ways[way](CPU, torch.float32, 64)
            results.append((call(), amount))
    (packed, packed_amount), (plain, plain_amount) = results
    assert packed_amount == plain_amount
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('private', [True, False])
def test_every_dtype_has_ceilings(dtype, private, monkeypatch):
    monkeypatch.setattr(ceilings, 'SIZES', (64,))
    monkeypatch.setattr(ceilings, 'COPY_BYTES', 2**20)
    if not private:
        monkeypatch.setattr(ceilings, 'PRIVATE', ('_an_operation_that_torch_has_not',))
    result = measure_ceilings(CPU, dtype, seconds=0.01)
    assert result['matmul_gflop_s'] > 0 and result['copy_gb_s'] > 0
    assert private or 'prepacked' not in result['matmul_by']


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_a_gpu_has_ceilings():
    result = measure_ceilings(torch.device('cuda'), torch.float16, seconds=0.2)
    assert result['matmul_gflop_s'] > 0 and result['copy_gb_s'] > 0
