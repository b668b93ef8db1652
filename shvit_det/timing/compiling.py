"""Compilation with frozen weights, which inductor packs for the processor as oneDNN wants them."""

from collections.abc import Callable
from typing import Any

import torch


def compile_frozen(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a compiled function that takes the weights of its modules for constants; only without gradients.

    ``torch.compile(options={'freezing': True})`` does not do it: before inductor sees its options, dynamo reads the
    global setting to decide whether weights become inputs of the graph, and inputs are not packed.
    """
    from torch._inductor import config  # which takes a while to import

    compiled = torch.compile(function, dynamic=False)

    def frozen(*args: Any, **kwargs: Any) -> Any:
        with config.patch(freezing=True):  # at every call, since one on another size compiles anew
            return compiled(*args, **kwargs)

    return frozen
