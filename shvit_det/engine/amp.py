"""Mixed precision on a CPU: mmengine's own wrapper wants an accelerator."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from ..registry import OPTIM_WRAPPERS, register


@register(OPTIM_WRAPPERS)
class CPUAmpOptimWrapper(OptimWrapper):
    """Train under bfloat16 autocast on a CPU; weights, gradients and optimizer stay float32.

    bfloat16 has float32's range, so that no loss is scaled. Takes the arguments of mmengine's ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield
