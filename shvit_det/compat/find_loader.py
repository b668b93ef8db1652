"""Symptom: ``module 'pkgutil' has no attribute 'find_loader'``: Python 3.14 has removed what mmengine and mmcv call.

Both use it to tell whether mmcv has its compiled ops. They get a function of that name; ``pkgutil`` stays as it is.
"""

import importlib
import importlib.util
import pkgutil
from types import SimpleNamespace
from typing import Any

CALLERS = ('mmengine.utils.dl_utils.misc', 'mmcv.utils.ext_loader')


def restore_find_loader() -> None:
    """Give the modules that call ``pkgutil.find_loader`` one that works, where Python has none."""
    if not hasattr(pkgutil, 'find_loader'):
        for name in CALLERS:
            importlib.import_module(name).pkgutil = SimpleNamespace(find_loader=find_loader)  # type: ignore[attr-defined]


def find_loader(name: str) -> Any:
    """Return what loads a module, None if there is no such module."""
    spec = importlib.util.find_spec(name)
    return None if spec is None else spec.loader
