"""Symptom: ``UnpicklingError`` when resuming, because torch >= 2.6 loads only tensors and plain containers by default.

mmengine's checkpoints carry, beside the weights, the smoothed values of the log: its ``HistoryBuffer`` around numpy
arrays, and the names of that class's own methods. Those few classes run no code when they are rebuilt, so they are
allowed; the safety stays on.
"""

import pickle
from collections.abc import Callable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from numpy._core import multiarray  # type: ignore[attr-defined]  # private, but what pickled arrays name


def history_method(cls: type, name: str) -> Callable:
    """Stand in for ``getattr`` while loading: it gives the statistics of ``HistoryBuffer`` and nothing else.

    Raises:
        pickle.UnpicklingError: If anything else is asked for.
    """
    methods = HistoryBuffer._statistics_methods
    if cls is not HistoryBuffer or name not in methods:
        raise pickle.UnpicklingError(f'getattr of {name!r} is not allowed in a checkpoint')
    return methods[name]


def allow_mmengine_classes() -> None:
    """Let ``torch.load(weights_only=True)`` read the checkpoints that mmengine writes."""
    HistoryBuffer()  # registers its statistics, which happens no earlier
    dtypes = [type(np.dtype(kind)) for kind in ('float32', 'float64', 'int32', 'int64', 'bool', 'uint8')]
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            np.ndarray,
            np.dtype,
            *dtypes,
            multiarray._reconstruct,
            multiarray.scalar,
            (multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),  # their names before numpy 2
            (multiarray.scalar, 'numpy.core.multiarray.scalar'),
            (history_method, 'builtins.getattr'),
        ]
    )
