"""Outputs of another runtime, compared with PyTorch's."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..common.errors import UsageError


def largest_difference(expected: Iterable[Any], found: Iterable[Any]) -> float:
    """Return the largest difference of some arrays, each over its largest expected magnitude; NaN if there is one."""
    pairs = [[np.asarray(out, np.float64) for out in pair] for pair in zip(expected, found, strict=True)]
    return float(np.max([np.abs(wanted - out).max() / np.abs(wanted).max() for wanted, out in pairs]))


def check_agreement(expected: Iterable[Any], found: Iterable[Any], tolerance: float, title: str) -> float:
    """Return :func:`largest_difference`, or raise ``UsageError`` if it is above a tolerance or shapes differ."""
    expected, found = list(expected), list(found)
    shapes, found_shapes = ([tuple(out.shape) for out in outs] for outs in (expected, found))
    if shapes != found_shapes:
        raise UsageError(f'{title} returns outputs of other shapes than PyTorch: {found_shapes}, not {shapes}')
    worst = largest_difference(expected, found)
    if not worst <= tolerance:
        raise UsageError(
            f'{title} computes something else than PyTorch: its outputs differ by {worst:.2g} of their largest '
            f'magnitude, and {tolerance:g} is allowed'
        )
    return worst
