"""Mixed precision: bfloat16, also on a CPU, and float16 with scaled losses."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn

from ..registry import OPTIM_WRAPPERS, register


@register(OPTIM_WRAPPERS)
class BFloat16OptimWrapper(OptimWrapper):
    """Train under bfloat16 autocast on any device; weights, gradients and optimizer stay float32.

    bfloat16 has float32's range, so that losses need no scale. It takes the arguments of mmengine's ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


@register(OPTIM_WRAPPERS)
class LossScaleOptimWrapper(AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper`` without clipping of infinite gradients. It takes the same arguments.

    The scaler skips a step whose gradients overflow. mmengine clips them before that, logs an infinite norm, and ends
    the run if ``clip_grad`` has ``error_if_nonfinite=True``.
    """

    def _clip_grad(self) -> None:
        parameters = (parameter for group in self.optimizer.param_groups for parameter in group['params'])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if torch.nn.utils.get_total_norm(gradients).isfinite():
            super()._clip_grad()
