"""Plans of a deployed network, one for each size of images."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook as has_any_global_hook

from .native.plan import CannotPlanError, Plan
from .packed import Packed, usable, versions

MOST = 64  # sizes whose plans are kept


class Plans:
    """Makes a plan at the first image of a size, and anew when layers or weights have changed.

    Copies and files do not carry plans.

    Args:
        network: Whose results are planned.
        outputs: Returns them, by calling the network's layers.
    """

    def __init__(self, network: nn.Module, outputs: Callable[[Any], Sequence[Any]]) -> None:
        self._network = network
        self._outputs = outputs
        self._forget()

    def _forget(self) -> None:
        self._plans: OrderedDict[tuple, Plan | None] = OrderedDict()
        self._state: tuple = ()

    def find(self, x: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]] | None:
        """Return what computes the network's results for ``x``; None if that is left to the layers, one by one.

        It is where they are not all computed by our own kernels, on other devices for instance, and where somebody
        watches them by hooks, or operations.
        """
        in_nhwc = x.is_contiguous(memory_format=torch.channels_last)
        if not usable(x) or not (in_nhwc or x.is_contiguous()):
            return None
        layers = _layers(self._network)
        packed = next((layer for layer in layers if isinstance(layer, Packed)), None)
        kernels = None if packed is None or _watched(layers) else packed.kernels(x)
        if kernels is None:
            return None
        weights = versions(weight for layer in layers for weight in layer._parameters.values() if weight is not None)
        state = tuple(map(id, layers)), weights
        if state != self._state:
            self._forget()
            self._state = state
        key, plans = (tuple(x.shape), x.dtype, in_nhwc), self._plans
        if key not in plans:
            plans[key] = self._made(x)
            if len(plans) > MOST:
                plans.popitem(last=False)
        plan = plans.get(key)  # another thread may have dropped it
        return None if plan is None else functools.partial(plan.run, kernels)

    def _made(self, x: Tensor) -> Plan | None:
        try:
            return Plan(self._outputs, x)
        except CannotPlanError:
            return None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_plans': OrderedDict(), '_state': ()}


def _layers(module: nn.Module) -> list[nn.Module]:
    """Return a module's descendants; ``modules()`` takes several times as long."""
    found = []
    for child in module._modules.values():
        if child is not None:
            found.append(child)
            if child._modules:
                found += _layers(child)
    return found


def _watched(layers: list[nn.Module]) -> bool:
    """Return whether somebody has hooks on layers, or something in the place of their ``forward``."""
    return has_any_global_hook() or any(
        layer._forward_hooks or layer._forward_pre_hooks or 'forward' in layer.__dict__ for layer in layers
    )
