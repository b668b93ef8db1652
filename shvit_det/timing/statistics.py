"""Medians, quantiles, the interval of a ratio, and the sign of a busy machine."""

from collections.abc import Sequence

import numpy as np

from .record import Times

BUSY_SPREAD = 0.15
"""A middle 80 percent of the runs wider than this share of the median is not the program's own doing."""

STABLE_RUNS = 3
STABLE_GAIN = 0.05
RESAMPLES = 2000


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


def ratio_of_medians(subject: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Return the ratio of two medians with its 95 percent bootstrap interval.

    The times of one round stand at the same place in both sequences and are drawn together, since what disturbs a
    round disturbs both.
    """
    times = np.array([subject, base])
    rounds = times.shape[1]
    drawn = np.random.default_rng(0).integers(0, rounds, size=(RESAMPLES, rounds))
    medians = np.median(times[:, drawn], axis=2)
    low, high = np.quantile(medians[0] / medians[1], (0.025, 0.975))
    return float(np.median(subject) / np.median(base)), float(low), float(high)


def spread(times: Times) -> float:
    """Return the width of the middle 80 percent of the runs as a share of the median."""
    return (times['p90_ms'] - times['p10_ms']) / times['median_ms']
