"""Parts of a deployed model that run compiled."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch._dynamo.callback import callback_handler
from torch.utils._pytree import tree_leaves, tree_map_only

from .backends.backend_choice import Backend
from .backends.deployed_layer import WeightChanges, layer_backends
from .precision import call_without_autocast

# On a CPU, neck and head are convolutions that already run as fast as the processor can, and inductor does not pack the
# weights of transposed convolutions.
PARTS = {'cpu': ('backbone',), 'cuda': ('backbone', 'neck', 'bbox_head')}
# Frozen weights on a CPU, CUDA graphs on a GPU.
DEFAULT_OPTIONS: dict[str, dict[str, Any]] = {
    'cpu': dict(options={'freezing': True}),
    'cuda': dict(mode='reduce-overhead'),
}


@dataclass(eq=False, repr=False)
class CompiledForward:
    """Replaces a method of a module: compiles it at the first call, and logs it whenever it compiles.

    It is an attribute of the module, so that the names of the weights do not change. The first size of images gets a
    graph of its own; the second gets one for all further sizes. When weights were loaded or moved, the next call
    compiles again. ``name`` is for the log; the options of ``torch.compile``, if empty, are chosen by the device.

    CUDA graphs write the outputs of every step of a model into the same memory. The first part of a detector begins a
    step, so that all parts may use its outputs to the end. What is compiled as a whole (``is_whole``) returns copies,
    which stay as they are when it is called again.
    """

    module: nn.Module
    name: str
    options: Mapping[str, Any]
    method: str
    begins_step: bool
    is_whole: bool
    _compiled: Any = None
    _sizes: set[tuple] = field(default_factory=set)  # that it was compiled for
    _changes: int = -1  # the count of changes of weights when it was compiled

    def __call__(self, *inputs: Any) -> Any:
        on_gpu = next(self.module.parameters()).is_cuda
        if on_gpu and self.begins_step:
            torch.compiler.cudagraph_mark_step_begin()
        outputs = call_without_autocast(self.module, self._call, *inputs)
        return tree_map_only(Tensor, Tensor.clone, outputs) if on_gpu and self.is_whole else outputs

    def _call(self, *inputs: Any) -> Any:
        tensors = [value for value in tree_leaves(inputs) if isinstance(value, Tensor)]
        if self._changes != WeightChanges.count:
            self._compiled, self._sizes, self._changes = None, set(), WeightChanges.count
        sizes = tuple(tuple(tensor.shape) for tensor in tensors)
        if sizes in self._sizes:
            return self._compiled(*inputs)
        options = self.options or DEFAULT_OPTIONS.get(tensors[0].device.type, DEFAULT_OPTIONS['cuda'])
        if self._compiled is None:
            self._compiled = torch.compile(method_of_its_own(self.module, self.method), **options)
        elif options.get('dynamic') is None:
            for tensor in tensors:
                torch._dynamo.maybe_mark_dynamic(tensor, list(range(2, tensor.ndim)))
        with announced(self.name, sizes), weights_frozen(options.get('options', {}).get('freezing', False)):
            outputs = self._compiled(*inputs)
        self._sizes.add(sizes)
        return outputs

    def __getstate__(self) -> dict[str, Any]:  # copies and loaded files compile again
        return {**self.__dict__, '_compiled': None, '_changes': -1}


def method_of_its_own(module: nn.Module, name: str) -> MethodType:
    """Return a method of ``module`` as a copy, without what is wrapped around it.

    Torch keeps compiled graphs with the code, and all modules of a class share that.
    """
    method = inspect.unwrap(getattr(type(module), name))
    parts = method.__globals__, method.__name__, method.__defaults__, method.__closure__
    return MethodType(FunctionType(method.__code__.replace(), *parts), module)


@contextmanager
def announced(name: str, sizes: tuple[tuple[int, ...], ...]) -> Iterator[None]:
    """Say in the log that a part is being compiled, if it is."""
    shapes = ', '.join('x'.join(map(str, size)) for size in sizes)

    def say(*_: Any) -> None:
        print_log(f'compiling the {name} for inputs of {shapes}: this takes a minute or so', 'current')

    callback_handler.register_start_callback(say)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(say)


@contextmanager
def weights_frozen(enabled: bool = True) -> Iterator[None]:
    """Make what is compiled in the block, maybe for another size of images, take weights as constants, to be packed.

    Inductor's option ``freezing`` alone has no effect: before, dynamo decides by the global setting whether weights
    become inputs of the graph.
    """
    from torch._inductor import config  # takes a while to import

    with config.patch(freezing=enabled):
        yield


def compile_parts(model: nn.Module, options: Mapping[str, Any]) -> bool:
    """Make a deployed backbone or neck run compiled; in a detector, only the parts for which that pays on its device.

    Inductor's code would be slower than our own kernels, so that a model with those is compiled only if ``options`` are
    given; return whether anything is.
    """
    if not options and runs_own_kernels(model):
        print_log('the kernels are compiled already; torch.compile would make them slower, and is left out', 'current')
        return False
    device = next(model.parameters()).device.type
    parts = {name: getattr(model, name, None) for name in PARTS.get(device, PARTS['cuda'])}
    found = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    for number, (name, part) in enumerate((found or {type(model).__name__: model}).items()):
        method = getattr(part, 'compiled_method', 'forward')
        setattr(part, method, CompiledForward(part, name, dict(options), method, number == 0, not found))
        part.register_load_state_dict_pre_hook(_note_change)
    return True


def _note_change(*_: Any) -> None:
    WeightChanges.count += 1


def runs_own_kernels(model: nn.Module) -> bool:
    return Backend.KERNELS.value in layer_backends(model).values()
