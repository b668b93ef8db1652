"""Parts of a deployed model that run compiled."""

from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

PARTS = ('backbone', 'neck', 'bbox_head')


class CompiledForward:
    """Stands in for a module's ``forward``: compiles it at the first call, and says so for every size of the inputs.

    It is an attribute of the module, so that the names of the weights stay what they are.

    Args:
        module: The module; its class's ``forward`` is compiled.
        name: How to call it in the log.
        options: Arguments of ``torch.compile``; empty ones are chosen by the device.
    """

    def __init__(self, module: nn.Module, name: str, options: Mapping[str, Any]) -> None:
        self.module = module
        self.name = name
        self.options = dict(options)
        self._compiled: Any = None
        self._sizes: set[tuple] = set()

    def __call__(self, *inputs: Any) -> Any:
        tensors = [value for value in tree_leaves(inputs) if isinstance(value, Tensor)]
        if self._compiled is None:
            forward = MethodType(type(self.module).forward, self.module)
            self._compiled = torch.compile(forward, **(self.options or default_options(tensors[0].device)))
        sizes = tuple(tuple(tensor.shape) for tensor in tensors)
        if sizes not in self._sizes:
            self._sizes.add(sizes)
            shapes = ', '.join('x'.join(map(str, size)) for size in sizes)
            print_log(f'compiling the {self.name} for inputs of {shapes}: this takes a minute or so', 'current')
        return self._compiled(*inputs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_compiled': None, '_sizes': set()}  # copies and files compile anew


def default_options(device: torch.device) -> dict[str, Any]:
    """Return what suits a device: frozen weights on a CPU, CUDA graphs on a GPU; every size by itself."""
    if device.type == 'cpu':
        return dict(dynamic=False, options={'freezing': True})
    return dict(dynamic=False, mode='reduce-overhead')


def compile_parts(model: nn.Module, options: Mapping[str, Any]) -> None:
    """Let a deployed backbone or neck run compiled, or those of a detector and the head of a one-stage one."""
    parts = {name: getattr(model, name, None) for name in PARTS}
    found = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    for name, part in (found or {type(model).__name__: model}).items():
        part.forward = CompiledForward(part, name, options)  # type: ignore[method-assign]
