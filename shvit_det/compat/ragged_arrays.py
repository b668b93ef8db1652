"""mmdet's ``proposal_fast`` with numpy 1.24 and later, which makes no array of arrays of different lengths."""

from types import ModuleType
from typing import Any

import numpy as np


class RaggedNumpy:
    """numpy with an ``array`` that makes an array of objects where the lengths differ, as numpy did before."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def array(values: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return np.array(values, *args, **kwargs)
        except ValueError:
            objects = np.empty(len(values), object)
            objects[:] = values
            return objects


def allow_ragged_arrays(caller: ModuleType) -> None:
    """Give mmdet's module of recalls such a numpy."""
    caller.np = RaggedNumpy()  # type: ignore[attr-defined]
