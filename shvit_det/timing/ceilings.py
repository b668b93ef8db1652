"""The ceilings of a machine: the highest rates of multiply-adds and of copying that were measured on it.

The rate of a model is compared with them. A ceiling is the best of many tries, since the fastest matrix product depends
on machine, data type and size. On a CPU, torch reaches oneDNN's prepacked kernels only through the private operations
that ``torch.compile`` uses, ``torch.ops.mkldnn``; a torch without them is measured without them.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch.nn import functional

from ..common.errors import UsageError
from .clocks import CPUClock, clock_for
from .record import Ceilings

SIZES = (256, 512, 1024, 2048, 4096, 8192)
COPY_BYTES = 2**28  # each of source and target: far beyond the caches
PRIVATE = ('_reorder_linear_weight', '_linear_pointwise', '_reorder_convolution_weight', '_convolution_pointwise')


class Work(NamedTuple):
    """A function to time, with its floating-point operations or bytes."""

    call: Callable[[], object]
    amount: float


Way = Callable[[torch.device, torch.dtype, int], Work]  # a way to multiply matrices


def measure_ceilings(
    device: torch.device, dtype: torch.dtype, seconds: float = 1.0, clock: CPUClock | None = None
) -> Ceilings:
    """Measure the best rates of matrix products and of copies on a device, with torch's present settings.

    Args:
        device: Where to compute.
        dtype: Of the factors; ways that torch does not have in it are left out.
        seconds: About how long to measure; allocation and warm-up can take as long again.
        clock: What tells the time; that of the device if None.

    Raises:
        UsageError: If torch multiplies no matrices of this data type on this device.
    """
    on_device = torch.cuda.device(device) if device.type == 'cuda' else nullcontext()
    with torch.no_grad(), on_device:
        clock = clock or clock_for(device)
        ways = WAYS | (PREPACKED_WAYS if device.type == 'cpu' and has_prepacked_operations() else {})
        best_rate, best_name = 0.0, ''
        for name, way in ways.items():
            rate, size = _best_over_sizes(way, device, dtype, 0.8 * seconds / len(ways), clock)
            if rate > best_rate:
                best_rate, best_name = rate, f'{name}, size {size}'
        if not best_name:
            raise UsageError(f'torch multiplies no matrices of {dtype} on {device.type}: take float32 or bfloat16')
        source = torch.ones(COPY_BYTES // 4, device=device)
        target = torch.zeros_like(source)
        copy_rate = 2 * COPY_BYTES / _best_duration(lambda: target.copy_(source), 0.2 * seconds, clock)
    return Ceilings(matmul_gflop_s=best_rate / 1e9, matmul_by=best_name, copy_gb_s=copy_rate / 1e9)


def has_prepacked_operations() -> bool:
    """Tell whether this torch has oneDNN's operations with prepacked weights."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in PRIVATE)


def _best_over_sizes(
    way: Way, device: torch.device, dtype: torch.dtype, seconds: float, clock: CPUClock
) -> tuple[float, int]:
    """Return the best rate of a way and the size that has it; 0 if torch does not have the way.

    The sizes grow until the next would take more than a quarter of the time.
    """
    best = (0.0, 0)
    for size in SIZES:
        try:
            work = way(device, dtype, size)
            duration = _best_duration(work.call, seconds / 4, clock)
        except RuntimeError:  # not in this data type, or too little memory for this size
            break
        best = max(best, (work.amount / duration, size))
        if 8 * duration > seconds / 4:
            break
    return best


def _best_duration(call: Callable[[], object], seconds: float, clock: CPUClock) -> float:
    """Return the shortest of repeated runs after a first one."""
    clock.time(call)
    best = spent = clock.time(call)
    while spent < seconds:
        duration = clock.time(call)
        best = min(best, duration)
        spent += duration
    return best


def _product(device: torch.device, dtype: torch.dtype, size: int) -> Work:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return Work(lambda: torch.mm(a, b), 2 * size**3)


def _linear(prepacked: bool) -> Way:
    def way(device: torch.device, dtype: torch.dtype, size: int) -> Work:
        image, weight = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        if not prepacked:
            return Work(lambda: functional.linear(image, weight), 2 * size**3)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, size)
        call = torch.ops.mkldnn._linear_pointwise
        return Work(lambda: call(image, packed, None, 'none', [], ''), 2 * size**3)

    return way


def _convolution(kernel_size: int, prepacked: bool) -> Way:
    """A convolution with as many positions as ``size``, and nearly as many inputs for each output."""

    def way(device: torch.device, dtype: torch.dtype, size: int) -> Work:
        channels = size // kernel_size // 16 * 16
        image = torch.randn(1, channels, size // 16, 16, device=device)
        weight = torch.randn(channels, channels, kernel_size, kernel_size, device=device)
        image, weight = (tensor.to(dtype, memory_format=torch.channels_last) for tensor in (image, weight))
        amount = 2 * size * weight.numel()
        if not prepacked:
            return Work(lambda: functional.conv2d(image, weight, padding=kernel_size // 2), amount)
        geometry = [kernel_size // 2] * 2, [1, 1], [1, 1], 1  # padding, stride, dilation, groups
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(image.shape))
        call = torch.ops.mkldnn._convolution_pointwise
        return Work(lambda: call(image, packed, None, *geometry, 'none', [], ''), amount)

    return way


WAYS: dict[str, Way] = {
    'matrix product': _product,
    'linear layer': _linear(False),
    '1x1 convolution': _convolution(1, False),
    '3x3 convolution': _convolution(3, False),
}
PREPACKED_WAYS: dict[str, Way] = {
    'oneDNN prepacked linear layer': _linear(True),
    'oneDNN prepacked 1x1 convolution': _convolution(1, True),
    'oneDNN prepacked 3x3 convolution': _convolution(3, True),
}
