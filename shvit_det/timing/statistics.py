"""Medians, quantiles, the interval of a ratio, and the sign of a busy machine."""

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np

from .record import Times

BUSY_SPREAD = 0.15
"""A middle 80 percent of the runs wider than this share of the median is rarely the program's own doing."""

MIN_INTERVAL_ROUNDS = 5
CONFIDENCE = 0.95

STABLE_RUNS = 3
STABLE_GAIN = 0.05


def summarize(seconds: Sequence[float]) -> Times:
    """Return the distribution of some times."""
    p10, median, p90 = (float(value) * 1e3 for value in np.quantile(seconds, (0.1, 0.5, 0.9)))
    return Times(median_ms=median, p10_ms=p10, p90_ms=p90, min_ms=min(seconds) * 1e3, runs=len(seconds))


def is_stable(seconds: Sequence[float]) -> bool:
    """Return whether a warm-up is over: the last three runs are no faster than the best before by more than 5 percent.

    Two of those three have to be near the best run of all, so that one lucky run does not end the warm-up.
    """
    if len(seconds) <= STABLE_RUNS:
        return False
    best_before = min(seconds[:-STABLE_RUNS])
    last = seconds[-STABLE_RUNS:]
    return min(last) >= best_before * (1 - STABLE_GAIN) and float(np.median(last)) <= min(seconds) * (1 + BUSY_SPREAD)


class Interval(NamedTuple):
    """Where a median lies: ``coverage`` is the share of such intervals that hold it."""

    low: float
    high: float
    coverage: float


def ratio_by_round(subject: Sequence[float], base: Sequence[float]) -> tuple[float, Interval | None]:
    """Return the median over the rounds of the ratio of two times, with its interval.

    The times of one round stand at the same place in both sequences and are compared with each other, since what
    disturbs a round disturbs both.
    """
    ratios = np.divide(subject, base)
    return float(np.median(ratios)), median_interval(ratios)


def median_interval(values: Sequence[float] | np.ndarray) -> Interval | None:
    """Return the interval of a median, from the k-th smallest to the k-th largest value; None for fewer than five.

    Each value is as likely above the true median as below, whatever their distribution, so that the number of values
    below is binomial: the interval misses with the probability that fewer than k values are on one side. The largest k
    is taken that misses in at most 5 percent. Of five values even the whole range misses in 2 / 2**5, 6 percent.
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
