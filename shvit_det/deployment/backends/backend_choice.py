"""Which backend computes a deployed layer, decided from its device, its data type and what the processor can do.

Torch and the processor are asked what they support, since a data type alone does not tell: on x86-64 without AVX-512,
for instance, oneDNN refuses bfloat16, and torch for Arm may lack some of the operations.
"""

import functools
from enum import Enum
from typing import Any, NamedTuple, Protocol

import torch

from ... import kernels
from ...common.log import warn

HALF = (torch.float16, torch.bfloat16)
# oneDNN's operations that lay weights out once and compute with those; inductor emits them for frozen weights. They are
# private to torch. With how many arguments each is called here:
OPERATIONS = {
    '_convolution_pointwise.default': 10,
    '_reorder_convolution_weight.default': 6,
    '_convolution_transpose_pointwise.default': 11,
    '_reorder_convolution_transpose_weight.default': 7,
    '_linear_pointwise.default': 6,
    '_linear_pointwise.binary': 5,
    '_reorder_linear_weight.default': 2,
}
# Those of 8-bit integers, which inductor emits for quantised models
INT8_OPERATIONS = {
    'qconv2d_pointwise.default': 17,
    'qconv_prepack.default': 9,
    'qlinear_pointwise.default': 13,
    'qlinear_prepack.default': 2,
}


class Backend(Enum):
    """Whose code computes a layer: our own kernels, oneDNN's on packed weights (also in 8-bit integers), or torch's."""

    KERNELS = 'kernels'
    ONEDNN = 'onednn'
    INT8 = 'int8'
    PLAIN = 'plain'


class InputRange(NamedTuple):
    """What the inputs of a layer lie between; 256 steps of 8-bit integers, one of which is zero, divide it."""

    lowest: float  # at most 0
    highest: float  # at least 0

    @property
    def step(self) -> float:
        return max((self.highest - self.lowest) / 255, torch.finfo(torch.float32).tiny)

    @property
    def zero(self) -> int:
        """The integer that stands for zero."""
        return round(-self.lowest / self.step)


class Choice(NamedTuple):
    """Who computes a layer, and in which data type; inputs are cast to it and results cast back."""

    backend: Backend
    dtype: torch.dtype


class Processor(NamedTuple):
    """What can be computed fast on a processor."""

    operations: tuple[str, ...]  # those of OPERATIONS that torch has
    onednn: tuple[torch.dtype, ...]  # the data types that they take
    kernels: tuple[torch.dtype, ...] = ()  # the data types of our own kernels; none where there are no kernels
    int8: bool = False  # whether products of 8-bit integers are fast


class Layer(Protocol):
    """What :func:`choose_backend` needs to know of a layer; ``DeployedLayer`` describes each."""

    operations: tuple[str, ...]
    input_range: InputRange | None

    def supports_kernels(self, dtype: torch.dtype) -> bool: ...


def choose_backend(layer: Layer, device_type: str, dtype: torch.dtype, processor: Processor) -> Choice:
    """Return who computes a layer: our own kernels where they can, else oneDNN, else torch.

    A float32 layer whose range of inputs is known is computed in 8-bit integers where the processor is fast at that.

    Where a half-precision type is not computed fast, float32 is, and only inputs and results are rounded. ``dtype`` is
    that of the inputs.
    """
    if device_type == 'cpu':
        if layer.input_range is not None and dtype is torch.float32 and processor.int8:
            return Choice(Backend.INT8, dtype)
        for computed in (dtype, torch.float32) if dtype in HALF else (dtype,):
            if computed in processor.kernels and layer.supports_kernels(computed):
                return Choice(Backend.KERNELS, computed)
            operations = set(layer.operations)
            if operations and computed in processor.onednn and operations <= set(processor.operations):
                return Choice(Backend.ONEDNN, computed)
    return Choice(Backend.PLAIN, dtype)


def this_processor(with_kernels: bool = True) -> Processor:
    """Return what can be computed fast here; our own kernels are among it if they are wanted."""
    library = kernels.load() if with_kernels else None
    return Processor(*_onednn(), () if library is None else library.dtypes, _has_int8())


@functools.cache
def _has_int8() -> bool:
    """Return whether the processor has VNNI for AVX-512, and torch the operations of oneDNN."""
    has_vnni = getattr(torch.cpu, '_is_vnni_supported', bool)()  # private to torch
    expected = INT8_OPERATIONS.items()
    return has_vnni and all(_num_arguments(name, torch.ops.onednn) == count for name, count in expected)


@functools.cache
def _onednn() -> tuple[tuple[str, ...], tuple[torch.dtype, ...]]:
    """Return oneDNN's operations that torch has here, and the data types that they take."""
    if not torch.backends.mkldnn.is_available():
        return (), ()
    asked = {torch.bfloat16: '_is_mkldnn_bf16_supported', torch.float16: '_is_mkldnn_fp16_supported'}
    halves = (dtype for dtype, name in asked.items() if getattr(torch.ops.mkldnn, name, bool)())
    operations = (name for name, count in OPERATIONS.items() if _num_arguments(name) == count)
    return tuple(operations), (torch.float32, *halves)


def _num_arguments(operation: str, namespace: Any = torch.ops.mkldnn) -> int | None:
    """Return how many arguments an operation of oneDNN takes; None if torch has no such operation."""
    name, overload = operation.split('.')
    found = getattr(getattr(namespace, name, None), overload, None)
    return None if found is None else len(found._schema.arguments)


@functools.cache
def say_if_slow(dtype: torch.dtype) -> None:
    """Say in the log, once, if a half-precision type is not faster than float32 on this processor."""
    library = kernels.load()
    fast = (*_onednn()[1], *(() if library is None else library.fast_dtypes))
    if dtype in HALF and dtype not in fast:
        warn(f'this processor does not compute in {dtype}: results are rounded to it, and it takes longer than float32')
