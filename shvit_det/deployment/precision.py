"""In which data type the parts of a deployed model compute: in that of their weights, under autocast too."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..models.pyramid import FeaturePyramid
from .backends.backend_choice import HALF


def floats_as(value: Any, dtype: torch.dtype) -> Any:
    """Return nested sequences and mappings with their floating-point tensors in a data type; itself if they are so."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        items = value.peek() if isinstance(value, FeaturePyramid) else value
        cast = [floats_as(item, dtype) for item in items]
        same = all(one is other for one, other in zip(cast, items, strict=True))
        return value if same else cast if isinstance(value, list) else tuple(cast)
    if isinstance(value, Mapping):
        return {key: floats_as(item, dtype) for key, item in value.items()}
    return value


def call_without_autocast(module: nn.Module, call: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """Return what ``call`` does for the inputs; under autocast, in the data type of the module's weights.

    The deployed form is made for one data type: autocast would cast some of its operations and not others.
    """
    weight = next(module.parameters())
    if not torch.is_autocast_enabled(weight.device.type):
        return call(*inputs, **named)
    with torch.autocast(weight.device.type, enabled=False):
        return call(*floats_as(inputs, weight.dtype), **floats_as(named, weight.dtype))


def without_autocast(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a module's ``forward`` compute in the data type of its weights, under autocast too."""

    @functools.wraps(forward)
    def run(self: nn.Module, *inputs: Any) -> Any:
        return call_without_autocast(self, functools.partial(forward, self), *inputs)

    return run


def cast_inputs(module: nn.Module, inputs: tuple) -> Any:
    """Cast floating-point inputs of a module to the data type of its weights; a hook."""
    return floats_as(inputs, next(module.parameters()).dtype)


def widen_outputs(module: nn.Module, inputs: tuple, outputs: Any) -> Any:
    """Cast outputs in half precision to float32; a hook."""
    return floats_as(outputs, torch.float32) if next(module.parameters()).dtype in HALF else outputs


def apply_in_float32(module: nn.Module, move: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
    """Replace a module's ``_apply``, by which torch moves it: the module never gets into half precision.

    It is for modules that compute with coordinates, for which half precision is too coarse.
    """

    def kept(x: Tensor) -> Tensor:
        there = move(x.new_empty(0))
        return x.to(there.device) if there.dtype in HALF else move(x)

    return type(module)._apply(module, kept, *args, **kwargs)
