"""The optimizer's state in a checkpoint that is resumed: checked, and adapted to this run.

The checkpoint has what an optimizer learned, such as its moments; the config says how it goes on: learning rate, weight
decay, betas. A fused optimizer walks through memory, not through indices: a moment whose layout differs from its
parameter's would be applied to the wrong weights. torch notices that on a GPU only.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor
from torch.optim import Optimizer

from ..common.errors import UsageError

MOMENTS = ('exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'momentum_buffer')  # have the shape of their parameter
IMPLEMENTATION = ('fused', 'foreach', 'capturable', 'differentiable')  # how a step is computed, not what
LATER = ('maximize', 'decoupled_weight_decay')  # settings that groups saved by older releases of torch lack
ALIKE = {'Adam', 'AdamW'}  # optimizers with the same moments
INITIAL = 'initial_'  # begins the name under which a schedule keeps the value that it starts from
LIMITS = ('max_', 'min_')  # begin those of the values between which OneCycleLR moves

Settings = dict[str, Any]


def settings_of(groups: Sequence[Mapping[str, Any]]) -> list[Settings]:
    """Return the settings of groups of parameters, without the parameters."""
    return [{name: value for name, value in group.items() if name != 'params'} for group in groups]


def planned(settings: Mapping[str, Any]) -> Settings:
    """Return what the config says of a group: of values that a schedule changes, those that it starts from."""
    of_schedules = {prefix + name for prefix in (INITIAL, *LIMITS) for name in settings}
    names = [name for name in settings if name not in of_schedules and name not in IMPLEMENTATION]
    plan = {name: settings.get(f'{INITIAL}{name}', settings[name]) for name in names}
    if 'betas' in plan:
        first, second = plan['betas']
        plan['betas'] = (plan.pop('momentum', first), second)  # a schedule calls the first one momentum
    return plan


def scheduled(settings: Mapping[str, Any]) -> set[str]:
    """Return the names of the settings of a group that schedules change."""
    names = {name.removeprefix(INITIAL) for name in settings if name.startswith(INITIAL)}
    return names | ({'betas'} if 'momentum' in names else set())


def saved_settings(saved: Mapping[str, Any]) -> list[Settings]:
    """Return the settings of all groups in the saved state of an optimizer wrapper, also of mmengine's base group."""
    base = saved.get('base_param_settings')
    return settings_of([*saved['param_groups'], *([base] if base else [])])


def kind_of(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what has to be equal in two optimizers so that one can use the other's moments."""
    momentum = 'alpha' in settings and bool(settings.get('momentum'))  # RMSprop's is kept only where it is used
    return set(planned(settings)) - set(LATER), settings.get('amsgrad'), settings.get('centered'), momentum


def load_optimizer(saved: dict[str, Any], wrapper: OptimWrapper, former: str, path: str | Path) -> str | None:
    """Load the moments that an optimizer of the class ``former`` saved, and leave all settings as they are.

    The name of the class may be empty, where it is not known.

    Returns:
        Why the moments cannot be used and start anew, or None if they have been loaded.

    Raises:
        UsageError: If the state is of parameters of another shape, or holds NaN or infinity.
    """
    own = [dict(group) for group in wrapper.param_groups]
    reason = check_optimizer(saved, wrapper.optimizer, path)
    kind = type(wrapper.optimizer).__name__
    if reason is None and former not in ('', kind) and {former, kind} != ALIKE:
        reason = f'they are of {former}, and this run has {kind}'
    if reason is None:
        wrapper.load_state_dict(dict(saved))  # overwrites the settings, those of the implementation too
        for group, settings in zip(wrapper.param_groups, own, strict=True):
            group.clear()
            group.update(settings)
        adapt_optimizer_state(wrapper.optimizer)
    return reason


def adapt_optimizer_state(optimizer: Optimizer) -> None:
    """Give a loaded state the memory layout of the parameters, and put its counters where the optimizer wants them."""
    for group in optimizer.param_groups:
        for parameter in group['params']:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if name == 'step' and isinstance(value, Tensor):
                    state[name] = value.to(parameter.device if group.get('fused') else 'cpu')
                elif isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def check_optimizer(saved: Any, optimizer: Optimizer, path: str | Path) -> str | None:
    """Compare the saved state of an optimizer with that of this run.

    Returns:
        Why its moments have no meaning for this optimizer, or None if they have.

    Raises:
        UsageError: If it is of parameters of another shape, or holds NaN or infinity.
    """
    try:
        saved_groups, own_groups = [group['params'] for group in saved['param_groups']], optimizer.param_groups
        lengths = [len(group) for group in saved_groups], [len(group['params']) for group in own_groups]
        states = {key: dict(saved['state'].get(key, {})) for group in saved_groups for key in group}
        kinds = list(map(kind_of, settings_of(saved['param_groups'])))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UsageError(f'{path} cannot be resumed: it holds no usable state of the optimizer ({error!r})') from error
    if lengths[0] != lengths[1]:  # of the same model, since its weights are: frozen or grouped in another way
        numbers = [f'{sum(each)} parameters in {len(each)} groups' for each in lengths]
        return f'they are of {numbers[0]}, and this run trains {numbers[1]}'
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
    if kinds != list(map(kind_of, settings_of(own_groups))):
        return f'they are of another optimizer than {type(optimizer).__name__} with these settings'
    return None
