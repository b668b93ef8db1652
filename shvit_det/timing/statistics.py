"""Medians, quantiles, the interval of a ratio, and the signs of a busy machine."""

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np

from .record import Times

BUSY_SPREAD = 0.15
"""If the middle 80 percent of the runs span more than this share of the median, the machine was probably busy."""

MIN_INTERVAL_ROUNDS = 5
CONFIDENCE = 0.95

STABLE_RUNS = 3
STABLE_GAIN = 0.05


def summarize(seconds: Sequence[float]) -> Times:
    """Return the distribution of some times."""
    p10, median, p90 = (float(value) * 1e3 for value in np.quantile(seconds, (0.1, 0.5, 0.9)))
    return Times(median_ms=median, p10_ms=p10, p90_ms=p90, min_ms=min(seconds) * 1e3, runs=len(seconds))


def is_stable(seconds: Sequence[float]) -> bool:
    """Tell whether a warm-up is over: the last three runs are at most 5 percent faster than the best before them.

    Two of the three have to be near the best run of all, so that one lucky run does not end the warm-up.
    """
    if len(seconds) <= STABLE_RUNS:
        return False
    best_before = min(seconds[:-STABLE_RUNS])
    last = seconds[-STABLE_RUNS:]
    return min(last) >= best_before * (1 - STABLE_GAIN) and float(np.median(last)) <= min(seconds) * (1 + BUSY_SPREAD)


class Interval(NamedTuple):
    """An interval for a median; ``coverage`` is the share of such intervals that contain it."""

    low: float
    high: float
    coverage: float


def ratio_by_round(subject: Sequence[float], base: Sequence[float]) -> tuple[float, Interval | None]:
    """Return the median over the rounds of the ratio of two times, with its interval.

    Times with the same index are of the same round: what slows a round down slows both.
    """
    ratios = np.divide(subject, base)
    return float(np.median(ratios)), median_interval(ratios)


def median_interval(values: Sequence[float] | np.ndarray) -> Interval | None:
    """Return the interval of a median, from the k-th smallest to the k-th largest value; None for fewer than five.

    Each value is as likely above the true median as below it, whatever the distribution. So the number of values below
    is binomial, and the interval misses the median if fewer than k values are on one side. k is the largest for which
    that has a probability of at most 5 percent. Of five values even the whole range misses in 2 / 2**5, 6 percent.
    """
    count = len(values)
    if count < MIN_INTERVAL_ROUNDS:
        return None
    coverages = [1 - 2 * sum(comb(count, below) for below in range(k)) / 2**count for k in range(1, count // 2 + 1)]
    k = max(1, sum(coverage >= CONFIDENCE for coverage in coverages))
    ordered = np.sort(values)
    return Interval(float(ordered[k - 1]), float(ordered[-k]), coverages[k - 1])


def spread(times: Times) -> float:
    """Return the width of the middle 80 percent of the runs as a share of the median."""
    return (times['p90_ms'] - times['p10_ms']) / times['median_ms']
