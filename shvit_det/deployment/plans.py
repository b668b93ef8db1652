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
    """Makes a plan at the first image of a size, and anew when weights have changed.

    Copies and files do not carry plans.

    Args:
        network: Its layers stay the ones that it has now.
        outputs: Returns the network's results, by calling its layers.
    """

    def __init__(self, network: nn.Module, outputs: Callable[[Any], Sequence[Any]]) -> None:
        self._outputs = outputs
        self._modules = list(network.modules())
        self._with_weights = [module for module in self._modules if module._parameters]
        self._first = next(module for module in self._modules if isinstance(module, Packed))
        self._forget()

    def _forget(self) -> None:
        self._plans: OrderedDict[tuple, Plan | None] = OrderedDict()
        self._state: tuple = ()

    def find(self, x: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]] | None:
        """Return what computes the network's results for ``x``; None if that is left to the layers, one by one.

        It is where they are not all computed by our own kernels, on other devices for instance, and where somebody
        watches them by hooks, or operations.
        """
        kernels = self._first.kernels_for(x) if usable(x) else None
        in_nhwc = x.is_contiguous(memory_format=torch.channels_last)
        if kernels is None or not (in_nhwc or x.is_contiguous()) or self._watched():
            return None
        weights = (weight for module in self._with_weights for weight in module._parameters.values())
        state = versions(weight for weight in weights if weight is not None)
        if state != self._state:
            self._forget()
            self._state = state
        key = tuple(x.shape), x.dtype, in_nhwc
        if key not in self._plans:
            self._plans[key] = self._made(x)
            if len(self._plans) > MOST:
                self._plans.popitem(last=False)
        plan = self._plans[key]
        return None if plan is None else functools.partial(plan.run, kernels)

    def _made(self, x: Tensor) -> Plan | None:
        try:
            return Plan(self._outputs, x)
        except CannotPlanError:
            return None

    def _watched(self) -> bool:
        of_layers = (module._forward_hooks or module._forward_pre_hooks for module in self._modules[1:])
        return has_any_global_hook() or any(of_layers)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_plans': OrderedDict(), '_state': ()}
