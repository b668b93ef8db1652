"""Symptom: ``UnpicklingError`` when resuming, because torch >= 2.6 loads only tensors and plain containers by default.

mmengine's checkpoints hold, besides the weights, the smoothed values of the log: its ``HistoryBuffer`` around numpy
arrays, and the names of that class's own methods. Those few classes run no code when they are rebuilt, so they are
allowed while a checkpoint is loaded, by us or by mmengine; the safety stays on.

torch has one list of allowed classes for the whole process. It belongs to the program, so that our classes are in it
only during a load.
"""

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from numpy._core import multiarray  # type: ignore[attr-defined]  # private, but what pickled arrays name

CHANGING = threading.Lock()  # of two threads that change torch's list at once, one change could be lost


class Entry(tuple[Callable, str]):
    """A callable and its name in files, as an entry of torch's list that is equal to no other.

    At the end of a load torch removes whatever equals an entry that was added for it, also where the program had put
    the same there for good, or another thread is still loading with it.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


def history_method(cls: type, name: str) -> Callable:
    """Take the place of ``getattr`` during a load: return the statistics of ``HistoryBuffer`` and nothing else.

    If the program itself has allowed ``getattr``, perhaps in another thread, this is ``getattr``.
    """
    if getattr in torch.serialization.get_safe_globals():
        return getattr(cls, name)  # type: ignore[no-any-return]
    methods = HistoryBuffer._statistics_methods
    if cls is not HistoryBuffer or name not in methods:
        raise pickle.UnpicklingError(f'getattr of {name!r} is not allowed in a checkpoint')
    return methods[name]


def classes_of_runs() -> dict[str, Callable]:
    """Return what mmengine's checkpoints contain besides what torch allows, by the names in the files."""
    dtypes = [type(np.dtype(kind)) for kind in ('float32', 'float64', 'int32', 'int64', 'bool', 'uint8')]
    return {
        **{name_of(each): each for each in (HistoryBuffer, np.ndarray, np.dtype, *dtypes)},
        'numpy._core.multiarray._reconstruct': multiarray._reconstruct,
        'numpy._core.multiarray.scalar': multiarray.scalar,
        'numpy.core.multiarray._reconstruct': multiarray._reconstruct,  # their names before numpy 2
        'numpy.core.multiarray.scalar': multiarray.scalar,
        'builtins.getattr': history_method,
    }


def name_of(allowed: Any) -> str:
    """Return the name in files of an entry of torch's list: a callable, or a pair of one and its name."""
    return str(allowed[1]) if isinstance(allowed, tuple) else f'{allowed.__module__}.{allowed.__qualname__}'


@contextmanager
def classes_allowed(*classes: type) -> Iterator[None]:
    """Make ``torch.load(weights_only=True)`` read the checkpoints that mmengine writes, and ``classes``, for a block.

    A name that the program has allowed keeps the meaning that the program has given it.
    """
    HistoryBuffer()  # registers its statistics, which happens no earlier
    wanted = classes_of_runs() | {name_of(each): each for each in classes}
    with CHANGING:
        chosen = {name_of(each) for each in torch.serialization.get_safe_globals() if not isinstance(each, Entry)}
        added = torch.serialization.safe_globals([Entry((wanted[name], name)) for name in wanted.keys() - chosen])
        added.__enter__()
    try:
        yield
    finally:
        with CHANGING:
            added.__exit__(None, None, None)


def let_mmengine_load_runs() -> None:
    """Make everything that loads checkpoints through mmengine read those of its runs: runner, inferencers, tools."""
    from mmengine.runner.checkpoint import CheckpointLoader  # when this is imported, this function is called

    original = CheckpointLoader.load_checkpoint.__func__  # type: ignore[attr-defined]
    CheckpointLoader.load_checkpoint = classmethod(classes_allowed()(original))
