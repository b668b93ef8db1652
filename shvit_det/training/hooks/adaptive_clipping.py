"""Adaptive gradient clipping, which the authors' ImageNet recipe uses and mmengine lacks."""

from collections.abc import Iterable
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from ...common.errors import UsageError
from ...registry import HOOKS, register


def unit_norms(tensor: Tensor) -> Tensor:
    """Return the norm of every output unit of a weight, or the one norm of a vector, in a shape that broadcasts.

    Shapes:
        (N, ...) -> (N, 1, ...); (N,) -> (1,); () -> ().
    """
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim())) or None, keepdim=True)


@torch.no_grad()
def clip_adaptively(
    parameters: Iterable[Tensor], clip_factor: float, min_norm: float = 1e-3, grad_scale: Tensor | float = 1.0
) -> None:
    """Scale down, in place, the gradient of every unit that exceeds ``clip_factor`` times the unit's own norm.

    (Brock et al., High-Performance Large-Scale Image Recognition Without Normalization, Equation 3.)

    Args:
        parameters: Parameters; those without a gradient are skipped.
        clip_factor: The largest ratio of gradient to weight.
        min_norm: The smallest norm assumed for a unit, so that a unit of zeros can still learn.
        grad_scale: The loss scale that the gradients still contain, and keep.
    """
    for parameter in parameters:
        if parameter.grad is None:
            continue
        largest = unit_norms(parameter).clamp(min=min_norm) * clip_factor
        scale = largest / (unit_norms(parameter.grad) / grad_scale).clamp(min=1e-6)
        parameter.grad.mul_(scale.clamp(max=1))


@register(HOOKS)
class AdaptiveGradientClippingHook(Hook):
    """Clip the gradients of all parameters by :func:`.clip_adaptively` before every step of the optimizer.

    It runs inside the optimizer's step, and so works with mixed precision and gradient accumulation: the gradients have
    been divided by the loss scale there, or the scale is known if a fused optimizer divides by it.

    Args:
        clip_factor: The largest ratio of gradient to weight.

    Raises:
        UsageError: If ``clip_factor`` is not positive.
    """

    def __init__(self, clip_factor: float) -> None:
        if not isinstance(clip_factor, int | float) or clip_factor <= 0:
            raise UsageError(f'clip_factor of AdaptiveGradientClippingHook must be positive, but got {clip_factor!r}')
        self.clip_factor = clip_factor

    def before_train(self, runner: Runner) -> None:
        assert isinstance(runner.optim_wrapper, OptimWrapper)
        runner.optim_wrapper.optimizer.register_step_pre_hook(self._clip)

    def _clip(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        grad_scale = getattr(optimizer, 'grad_scale', None)  # torch's GradScaler sets it for a fused optimizer
        for group in optimizer.param_groups:
            clip_adaptively(group['params'], self.clip_factor, grad_scale=1.0 if grad_scale is None else grad_scale)
