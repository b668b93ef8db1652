"""Checkpoints of runs in another memory layout, or with another kind of kernels in the optimizer.

A fused optimizer goes through memory and not through indices: a state that lies in another order than its parameter
would be applied to the wrong weights. torch sees that on a GPU, and not on a CPU. And what ``load_state_dict`` of an
optimizer loads is also whether it is fused.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map


class ContiguousCheckpointHook(Hook):
    """Saves every tensor as NCHW, whatever the layout of the run, so that any program may go on with it."""

    priority = 'VERY_LOW'

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        for weights in (content for key, content in checkpoint.items() if key.endswith('state_dict')):
            for name, value in weights.items():
                weights[name] = _contiguous(value)
        if 'optimizer' in checkpoint:
            checkpoint['optimizer'] = tree_map(_contiguous, checkpoint['optimizer'])


def fused_flags(optimizer: Optimizer) -> list[bool | None]:
    """Return for each group of parameters whether it is updated by a fused kernel; None leaves it to torch."""
    return [group.get('fused') for group in optimizer.param_groups]


def fit_state(optimizer: Optimizer, fused: Sequence[bool | None]) -> None:
    """Bring a state that was loaded into the layout of the parameters, and let the optimizer be fused as before."""
    for group, flag in zip(optimizer.param_groups, fused, strict=True):
        if 'fused' in group:
            group['fused'] = flag
        for parameter in group['params']:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if name == 'step' and isinstance(value, Tensor):
                    state[name] = value.to(parameter.device if flag else 'cpu')
                elif isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value
