"""Mixed precision: in bfloat16, on a CPU too, and in float16 with scaled losses."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn

from ..registry import OPTIM_WRAPPERS, register


@register(OPTIM_WRAPPERS)
class BFloat16OptimWrapper(OptimWrapper):
    """Train under bfloat16 autocast, wherever the model is; weights, gradients and optimizer stay float32.

    bfloat16 has float32's range, so that no loss is scaled. Takes the arguments of mmengine's ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


@register(OPTIM_WRAPPERS)
class LossScaleOptimWrapper(AmpOptimWrapper):
    """mmengine's wrapper with scaled losses, which our runner has in its place: an overflow is not clipped.

    The scaler leaves such a step out. mmengine clips before that, logs an infinite norm, and ends the run with
    ``clip_grad=dict(error_if_nonfinite=True)``. Takes the same arguments.
    """

    def _clip_grad(self) -> None:
        parameters = (parameter for group in self.optimizer.param_groups for parameter in group['params'])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if torch.nn.utils.get_total_norm(gradients).isfinite():
            super()._clip_grad()
