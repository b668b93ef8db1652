"""Plans of a deployed network, one for each size of images."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.execution_plan import CannotPlanError, Plan
from ...models.unmodified import has_any_global_hook
from .choice import Backend
from .packed import Changes, Packed, own_kernels, runs_eagerly

MOST = 64  # sizes whose plans are kept


class Plans:
    """Makes a plan at the first image of a size, and anew when weights have been loaded or moved, or layers replaced.

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
        self._layers: list[nn.Module] = []
        self._changes = -1

    def find(self, x: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]] | None:
        """Return what computes the network's results for ``x``; None if that is left to the layers, one by one.

        It is where they are not all computed by our own kernels, on other devices for instance, and where somebody
        watches them by hooks, or operations.
        """
        in_nhwc = x.is_contiguous(memory_format=torch.channels_last)
        if not runs_eagerly(x) or not (in_nhwc or x.is_contiguous()):
            return None
        layers = _layers(self._network)
        packed = next((layer for layer in layers if isinstance(layer, Packed)), None)
        if packed is None or _watched(layers) or packed.choose(x) != (Backend.KERNELS, x.dtype):
            return None
        if layers != self._layers or Changes.count != self._changes:
            self._forget()
            self._layers, self._changes = layers, Changes.count
        key, plans = (tuple(x.shape), x.dtype, in_nhwc), self._plans
        if key not in plans:
            plans[key] = self._made(x)
            if len(plans) > MOST:
                plans.popitem(last=False)
        plan = plans.get(key)  # another thread may have dropped it
        return None if plan is None else functools.partial(plan.run, own_kernels())

    def _made(self, x: Tensor) -> Plan | None:
        if not all(map(_is_ours, self._layers)):
            return None
        try:
            return Plan(self._outputs, x)
        except CannotPlanError:
            return None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_plans': OrderedDict(), '_layers': [], '_changes': -1}


def _layers(module: nn.Module) -> list[nn.Module]:
    """Return a module's descendants; ``modules()`` takes several times as long."""
    found = []
    for child in module._modules.values():
        if child is not None:
            found.append(child)
            if child._modules:
                found += _layers(child)
    return found


def _is_ours(layer: nn.Module) -> bool:
    """Return whether a layer may be given a plan's stand-in for a tensor."""
    return type(layer) in (nn.Sequential, nn.ModuleList) or type(layer).__module__.startswith(__package__)


def _watched(layers: list[nn.Module]) -> bool:
    """Return whether somebody has hooks on layers, or something in the place of their ``forward``."""
    return has_any_global_hook() or any(
        layer._forward_hooks or layer._forward_pre_hooks or 'forward' in layer.__dict__ for layer in layers
    )
