"""The optimizer's state in a checkpoint that is resumed: checked, and adapted to this run's memory layout and kernels.

A fused optimizer walks through memory, not through indices: a moment whose layout differs from its parameter's would be
applied to the wrong weights. torch notices that on a GPU only. Loading a state also overwrites the ``fused`` setting.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..common.errors import UsageError

MOMENTS = ('exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'momentum_buffer')  # have the shape of their parameter


def fused_flags(optimizer: Optimizer) -> list[bool | None]:
    """Return for each group of parameters whether a fused kernel updates it; None leaves the choice to torch."""
    return [group.get('fused') for group in optimizer.param_groups]


def adapt_optimizer_state(optimizer: Optimizer, fused: Sequence[bool | None]) -> None:
    """Give a loaded state the memory layout of the parameters, and the groups their ``fused`` settings back."""
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


def check_optimizer(saved: Any, optimizer: Optimizer, path: str | Path) -> None:
    """Compare the saved state of an optimizer with the parameters of this run.

    Raises:
        UsageError: If it belongs to other parameters, or holds NaN or infinity.
    """
    try:
        saved_groups, own_groups = [group['params'] for group in saved['param_groups']], optimizer.param_groups
        lengths = [len(group) for group in saved_groups], [len(group['params']) for group in own_groups]
        states = {key: dict(saved['state'].get(key, {})) for group in saved_groups for key in group}
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UsageError(f'{path} cannot be resumed: it holds no usable state of the optimizer ({error!r})') from error
    if lengths[0] != lengths[1]:
        raise UsageError(
            f'{path} cannot be resumed: its optimizer has {sum(lengths[0])} parameters in {len(lengths[0])} groups, '
            f'this one has {sum(lengths[1])} in {len(lengths[1])}: resume with the config of that run'
        )
    own = [parameter for group in own_groups for parameter in group['params']]
    for parameter, key in zip(own, (key for group in saved_groups for key in group), strict=True):
        for name, value in states[key].items():
            wrong = None
            if name in MOMENTS and (not isinstance(value, Tensor) or value.shape != parameter.shape):
                wrong = f'has another shape than its parameter, {tuple(parameter.shape)}'
            elif isinstance(value, Tensor) and not torch.isfinite(value).all():
                wrong = 'holds NaN or infinity'
            if wrong:
                raise UsageError(f'{path} cannot be resumed: {name} in its optimizer {wrong}')
