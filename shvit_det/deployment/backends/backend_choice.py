"""Which backend computes a deployed layer, decided from its device, its data type and what the processor can do.

Torch and the processor are asked what they support, since a data type alone does not tell: on x86-64 without AVX-512,
for instance, oneDNN refuses bfloat16, and torch for Arm may lack some of the operations.
"""

import functools
import logging
from enum import Enum
from typing import NamedTuple, Protocol

import torch
from mmengine.logging import print_log

from ... import kernels

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


class Backend(Enum):
    """Whose code computes a layer: our own kernels, oneDNN's on packed weights, or torch's public operations."""

    KERNELS = 'kernels'
    ONEDNN = 'onednn'
    PLAIN = 'plain'


class Choice(NamedTuple):
    """Who computes a layer, and in which data type; inputs are cast to it and results cast back."""

    backend: Backend
    dtype: torch.dtype


class Processor(NamedTuple):
    """What can be computed fast on a processor."""

    operations: tuple[str, ...]  # those of OPERATIONS that torch has
    onednn: tuple[torch.dtype, ...]  # the data types that they take
    kernels: tuple[torch.dtype, ...] = ()  # the data types of our own kernels; none where there are no kernels


class Layer(Protocol):
    """What :func:`choose_backend` needs to know of a layer; the deployed layers provide it.

    Attributes:
        operations: The operations of oneDNN that it needs; none if oneDNN has no such layer.
    """

    operations: tuple[str, ...]

    def supports_kernels(self, dtype: torch.dtype) -> bool:
        """Return whether our own kernels have such a layer for inputs of a data type."""


def choose_backend(layer: Layer, device_type: str, dtype: torch.dtype, processor: Processor) -> Choice:
    """Return who computes a layer: our own kernels where they can, else oneDNN, else torch.

    Where a half-precision type is not computed fast, float32 is, and only inputs and results are rounded. ``dtype`` is
    that of the inputs.
    """
    if device_type == 'cpu':
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
    return Processor(*_onednn(), () if library is None else library.dtypes)


@functools.cache
def _onednn() -> tuple[tuple[str, ...], tuple[torch.dtype, ...]]:
    """Return oneDNN's operations that torch has here, and the data types that they take."""
    if not torch.backends.mkldnn.is_available():
        return (), ()
    asked = {torch.bfloat16: '_is_mkldnn_bf16_supported', torch.float16: '_is_mkldnn_fp16_supported'}
    halves = (dtype for dtype, name in asked.items() if getattr(torch.ops.mkldnn, name, bool)())
    operations = (name for name, count in OPERATIONS.items() if _num_arguments(name) == count)
    return tuple(operations), (torch.float32, *halves)


def _num_arguments(operation: str) -> int | None:
    """Return how many arguments an operation of oneDNN takes; None if torch has no such operation."""
    name, overload = operation.split('.')
    found = getattr(getattr(torch.ops.mkldnn, name, None), overload, None)
    return None if found is None else len(found._schema.arguments)


@functools.cache
def say_if_slow(dtype: torch.dtype) -> None:
    """Say in the log, once, if a half-precision type is not faster than float32 on this processor."""
    library = kernels.load()
    fast = (*_onednn()[1], *(() if library is None else library.fast_dtypes))
    if dtype in HALF and dtype not in fast:
        print_log(
            f'this processor does not compute in {dtype}: results are rounded to it, and it takes longer than float32',
            'current',
            logging.WARNING,
        )
