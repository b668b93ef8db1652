"""Symptom: ``module 'pkgutil' has no attribute 'find_loader'``: Python 3.14 has removed what mmengine and mmcv call.

Both use it to tell whether mmcv has its compiled ops. They get a function of that name; ``pkgutil`` stays as it is.
"""

import importlib.util
import pkgutil
from types import ModuleType, SimpleNamespace
from typing import Any


def restore_find_loader(caller: ModuleType) -> None:
    """Give a module that calls ``pkgutil.find_loader`` one that works, where Python has none."""
    if not hasattr(pkgutil, 'find_loader'):
        vars(caller)['pkgutil'] = SimpleNamespace(find_loader=find_loader)


def find_loader(name: str) -> Any:
    """Return the loader of a module, or None if there is no such module."""
    spec = importlib.util.find_spec(name)
    return None if spec is None else spec.loader
