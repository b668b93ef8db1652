"""What the machine reaches at best: multiply-adds per second and bytes per second, to hold a detector's times against.

A ceiling is the best of everything that was tried, so that no detector is told that it beats the machine: which matrix
product is fastest differs by machine, dtype and size. On a CPU torch reaches oneDNN's prepacked kernels only through
private operations, ``torch.ops.mkldnn``, those that ``torch.compile`` emits; where they are missing they are not tried.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..common.errors import UsageError
from .record import Ceilings

SIZES = (256, 512, 1024, 2048, 4096, 8192)
COPY_BYTES = 2**28  # each of source and target: far beyond the caches
PRIVATE = ('_reorder_linear_weight', '_linear_pointwise', '_reorder_convolution_weight', '_convolution_pointwise')


class Work(NamedTuple):
    """Something to time, and how much it does: floating-point operations or bytes."""

    call: Callable[[], object]
    amount: float


Clock = Callable[[], float]
Timed = Callable[[Callable[[], object]], float]  # runs something and returns how many seconds that took
Way = Callable[[torch.device, torch.dtype, int], Work]


def measure_ceilings(
    device: torch.device, dtype: torch.dtype, seconds: float = 1.0, clock: Clock = time.perf_counter
) -> Ceilings:
    """Measure the best matrix-product and copy rates of a device, with the threads and settings that torch now has.

    Args:
        device: Where to compute.
        dtype: Of the factors; ways that torch does not have in it are left out.
        seconds: About how long to measure; building and warming up can take as long again.
        clock: What tells the time on a CPU; a GPU's own events do on a GPU.

    Raises:
        UsageError: If torch multiplies no matrices of this dtype on this device.
    """
    on_device = torch.cuda.device(device) if device.type == 'cuda' else nullcontext()
    with torch.no_grad(), on_device:
        timed = _cuda_duration if device.type == 'cuda' else _cpu_duration(clock)
        ways = WAYS | (PREPACKED_WAYS if device.type == 'cpu' and _has_private_operations() else {})
        best_rate, best_name = 0.0, ''
        for name, way in ways.items():
            rate, size = _best_over_sizes(way, device, dtype, 0.8 * seconds / len(ways), timed)
            if rate > best_rate:
                best_rate, best_name = rate, f'{name}, size {size}'
        if not best_name:
            raise UsageError(f'torch multiplies no matrices of {dtype} on {device.type}: take float32 or bfloat16')
        copy = _copy(device)
        copy_rate = copy.amount / _best_duration(copy.call, 0.2 * seconds, timed)
    return Ceilings(matmul_gflop_s=best_rate / 1e9, matmul_by=best_name, copy_gb_s=copy_rate / 1e9)


def _has_private_operations() -> bool:
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in PRIVATE)


def _best_over_sizes(
    way: Way, device: torch.device, dtype: torch.dtype, seconds: float, timed: Timed
) -> tuple[float, int]:
    """Return the best rate that a way reaches and the size at which it does; 0 where torch does not have it.

    The sizes grow until the next would not fit into a quarter of the time.
    """
    best = (0.0, 0)
    for size in SIZES:
        try:
            work = way(device, dtype, size)
            duration = _best_duration(work.call, seconds / 4, timed)
        except RuntimeError:  # torch does not have it in this dtype, or not enough memory for this size
            break
        best = max(best, (work.amount / duration, size))
        if 8 * duration > seconds / 4:
            break
    return best


def _best_duration(call: Callable[[], object], seconds: float, timed: Timed) -> float:
    """Return the shortest of repeated runs after a first one."""
    timed(call)
    best = spent = timed(call)
    while spent < seconds:
        duration = timed(call)
        best = min(best, duration)
        spent += duration
    return best


def _cpu_duration(clock: Clock) -> Timed:
    def timed(call: Callable[[], object]) -> float:
        start = clock()
        call()
        return clock() - start

    return timed


def _cuda_duration(call: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _copy(device: torch.device) -> Work:
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.zeros_like(source)
    return Work(lambda: target.copy_(source), 2 * COPY_BYTES)


# --- the ways to multiply matrices; each takes device, dtype and size


def _mm(device: torch.device, dtype: torch.dtype, size: int) -> Work:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return Work(lambda: torch.mm(a, b), 2 * size**3)


def _linear(device: torch.device, dtype: torch.dtype, size: int) -> Work:
    image, weight = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return Work(lambda: functional.linear(image, weight), 2 * size**3)


def _prepacked_linear(device: torch.device, dtype: torch.dtype, size: int) -> Work:
    image, weight = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    operations = torch.ops.mkldnn
    packed = operations._reorder_linear_weight(weight, size)
    return Work(lambda: operations._linear_pointwise(image, packed, None, 'none', [], ''), 2 * size**3)


def _image_and_kernel(
    device: torch.device, dtype: torch.dtype, size: int, kernel_size: int
) -> tuple[Tensor, Tensor, int]:
    """Return a channels-last image of ``size`` positions, a convolution's weight, and the operations of the two."""
    channels = size // kernel_size // 16 * 16
    image = torch.randn(1, channels, size // 16, 16, device=device)
    weight = torch.randn(channels, channels, kernel_size, kernel_size, device=device)
    image, weight = (tensor.to(dtype, memory_format=torch.channels_last) for tensor in (image, weight))
    return image, weight, 2 * size * weight.numel()


def _convolution(kernel_size: int) -> Way:
    def way(device: torch.device, dtype: torch.dtype, size: int) -> Work:
        image, weight, amount = _image_and_kernel(device, dtype, size, kernel_size)
        return Work(lambda: functional.conv2d(image, weight, padding=kernel_size // 2), amount)

    return way


def _prepacked_convolution(kernel_size: int) -> Way:
    def way(device: torch.device, dtype: torch.dtype, size: int) -> Work:
        image, weight, amount = _image_and_kernel(device, dtype, size, kernel_size)
        geometry = [kernel_size // 2] * 2, [1, 1], [1, 1], 1  # padding, stride, dilation, groups
        operations = torch.ops.mkldnn
        packed = operations._reorder_convolution_weight(weight, *geometry, list(image.shape))
        call = operations._convolution_pointwise
        return Work(lambda: call(image, packed, None, *geometry, 'none', [], ''), amount)

    return way


WAYS: dict[str, Way] = {
    'matrix product': _mm,
    'linear layer': _linear,
    '1x1 convolution': _convolution(1),
    '3x3 convolution': _convolution(3),
}
PREPACKED_WAYS: dict[str, Way] = {
    'oneDNN prepacked linear layer': _prepacked_linear,
    'oneDNN prepacked 1x1 convolution': _prepacked_convolution(1),
    'oneDNN prepacked 3x3 convolution': _prepacked_convolution(3),
}
