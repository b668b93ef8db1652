"""The precision in which the stand-in computes."""

import functools

import torch
from torch import Tensor


def widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Convert tensors to one floating-point dtype, at least float32; one that has it stays as it is.

    Autocast passes half-precision maps together with float32 regions, and torchvision's kernels take neither half
    precision on a CPU nor mixed dtypes.
    """
    dtype = functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors], torch.float32)
    return tuple(tensor.to(dtype) for tensor in tensors)
