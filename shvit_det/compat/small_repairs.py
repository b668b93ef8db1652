"""What mmengine, mmcv and mmdet lack on today's Python and numpy, or for us: a few lines for each symptom.

This module imports only Python's library at its top: :mod:`..on_import` imports it before all others.
"""

import importlib.util
import pkgutil
import warnings
from types import ModuleType, SimpleNamespace
from typing import Any


def add_to_mmengine() -> None:
    """Enter ``shvit_det`` in mmengine's list of packages, whose configs and models it finds by name."""
    from mmengine.config.utils import MODULE2PACKAGE

    MODULE2PACKAGE['shvit_det'] = 'shvit_det'


def silence_pkg_resources() -> None:
    """Hide the deprecation of ``pkg_resources``, which every ``mmdet::`` base warns of: users cannot do anything."""
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')


def restore_find_loader(caller: ModuleType) -> None:
    """Give a module that calls ``pkgutil.find_loader`` one that works on Python 3.14, which has none.

    mmengine and mmcv only ask whether it returns None, to tell whether mmcv has its compiled ops.
    """
    if not hasattr(pkgutil, 'find_loader'):
        vars(caller)['pkgutil'] = SimpleNamespace(find_loader=importlib.util.find_spec)


def keep_one_pixel(geometric: ModuleType) -> None:
    """Give ``mmcv.image.geometric`` sizes of at least one pixel to resize to.

    It rounds a side of a thin image to 0, as of 6000x3 pixels, and OpenCV refuses that size.
    """
    scaled_size = geometric._scale_size

    def scaled_size_of_one_pixel(size: tuple[int, int], scale: float | tuple[float, float]) -> tuple[int, int]:
        width, height = scaled_size(size, scale)
        return max(1, width), max(1, height)

    vars(geometric)['_scale_size'] = scaled_size_of_one_pixel


def allow_ragged_arrays(caller: ModuleType) -> None:
    """Let mmdet's module of recalls make arrays of arrays of different lengths, as numpy did before 1.24.

    Its ``proposal_fast`` needs them.
    """
    import numpy as np

    def array(values: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return np.array(values, *args, **kwargs)
        except ValueError:
            objects = np.empty(len(values), object)
            objects[:] = values
            return objects

    vars(caller)['np'] = SimpleNamespace(**vars(np) | {'array': array})
