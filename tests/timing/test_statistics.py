"""Medians, warm-up, ratios."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shvit_det.timing.statistics import is_stable, median_interval, ratio_by_round, spread, summarize

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40)


def test_a_summary_is_in_milliseconds():
    times = summarize([0.001 * value for value in range(1, 12)])
    assert times == pytest.approx(dict(median_ms=6.0, p10_ms=2.0, p90_ms=10.0, min_ms=1.0, runs=11))
    assert spread(times) == pytest.approx(8 / 6)


@given(TIMES)
def test_quantiles_are_ordered(seconds):
    times = summarize(seconds)
    values = [times['min_ms'], times['p10_ms'], times['median_ms'], times['p90_ms']]
    assert all(low <= high * (1 + 1e-12) for low, high in pairwise(values))


@given(TIMES, st.floats(0.1, 10))
def test_a_constant_factor_is_the_ratio_with_no_doubt(seconds, factor):
    ratio, interval = ratio_by_round([factor * second for second in seconds], seconds)
    assert ratio == pytest.approx(factor)
    assert (interval is None) == (len(seconds) < 5)
    assert interval is None or (interval.low, interval.high) == pytest.approx((factor, factor))


def test_noise_of_a_round_that_hits_both_leaves_the_ratio_narrow_and_independent_noise_does_not():
    random = np.random.default_rng(1)
    disturbed = random.uniform(1, 2, size=40)
    _, (low, high, _) = ratio_by_round(list(3 * disturbed), list(disturbed))
    assert high - low < 1e-9
    ratio, (low, high, _) = ratio_by_round(list(3 * random.uniform(1, 2, size=40)), list(disturbed))
    assert low < 3 < high and low <= ratio <= high
    assert high - low > 0.1


@pytest.mark.parametrize(
    ('count', 'rank', 'coverage'),
    # Tables of the sign test: 2 * P(fewer than rank of count coins show heads) is what is missed.
    [(5, 1, 0.9375), (6, 1, 0.96875), (8, 1, 0.9921875), (9, 2, 0.9609375), (10, 2, 0.978515625), (20, 6, 0.95861)],
)
def test_an_interval_ends_at_the_ranks_of_the_sign_test(count, rank, coverage):
    values = np.random.default_rng(0).permutation(count) + 1
    assert median_interval(values) == pytest.approx((rank, count + 1 - rank, coverage), abs=1e-5)


@pytest.mark.parametrize('count', [1, 2, 3, 4])
def test_few_rounds_have_no_interval(count):
    assert median_interval(range(count)) is None


JITTER = {
    'normal': lambda random, size: random.normal(0, 0.03, size),
    'skewed': lambda random, size: random.exponential(0.1, size),
    'outliers': lambda random, size: (random.random(size) < 0.2) * random.exponential(1, size) + random.random(size),
}


@pytest.mark.parametrize('count', [5, 7, 10, 20])
@pytest.mark.parametrize('noise', JITTER)
@pytest.mark.parametrize('of_both', [True, False])
def test_as_many_intervals_hold_the_true_ratio_as_they_say(count, noise, of_both):
    random = np.random.default_rng(count)
    size, jitter = (2000, count), JITTER[noise]
    of_round = 1 + random.exponential(0.2, size)
    subject = 2 * of_round * (1 + jitter(random, size))
    base = of_round * (1 + jitter(random, size)) if of_both else of_round
    true = 2 if of_both else 2 * (1 + np.median(jitter(random, 100_000)))
    intervals = [ratio_by_round(*times)[1] for times in zip(subject, base, strict=True)]
    said = intervals[0].coverage
    assert np.mean([low <= true <= high for low, high, _ in intervals]) == pytest.approx(said, abs=0.02)
    assert said > 0.93


@pytest.mark.parametrize(
    ('seconds', 'stable'),
    [
        ([1.0, 1.0, 1.0], False),
        ([9.0, 1.0, 1.0, 1.0], False),  # the first one alone was before these three, and they are far below it
        ([9.0, 1.0, 1.0, 1.0, 1.0], True),
        ([1.0, 0.99, 1.0, 0.98], True),
        ([1.0, 0.9, 0.8, 0.7], False),
        ([1.0, 1.0, 1.0, 0.5, 1.0, 1.0], False),
        ([0.1, 1.0, 1.0, 1.0], False),
    ],
)
def test_warm_up_ends_when_the_times_no_longer_fall(seconds, stable):
    assert is_stable(seconds) is stable
