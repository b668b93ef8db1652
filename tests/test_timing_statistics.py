"""Medians, warm-up, ratios."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shvit_det.timing.statistics import is_stable, ratio_of_medians, spread, summarize

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
    ratio, low, high = ratio_of_medians([factor * second for second in seconds], seconds)
    assert (ratio, low, high) == pytest.approx((factor, factor, factor))


def test_noise_of_a_round_that_hits_both_leaves_the_ratio_narrow_and_independent_noise_does_not():
    random = np.random.default_rng(1)
    disturbed = random.uniform(1, 2, size=40)
    _, low, high = ratio_of_medians(list(3 * disturbed), list(disturbed))
    assert high - low < 1e-9
    ratio, low, high = ratio_of_medians(list(3 * random.uniform(1, 2, size=40)), list(disturbed))
    assert low < 3 < high and low <= ratio <= high
    assert high - low > 0.1


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
