"""Winograd's 3x3 convolution in operations of torch, for processors that our own kernels do not run on.

Nothing but :mod:`.winograd` uses it; it can go when there are kernels for every processor.
"""

import torch
from torch import Tensor
from torch.nn import functional

from .deployed_layer import runs_eagerly, to_nchw, to_nhwc
from .winograd_transforms import SPAN, TILE, transforms

DTYPES = (torch.float32, torch.float64)
# Measured on one thread with 1 MiB of L2 cache: so many tiles at once keep intermediate results in the caches while the
# matrix products are long enough; from so many tiles on, this is faster than the direct convolution, which reads a
# quarter of the weights. On two threads it is not, on most maps.
TILES_AT_ONCE = 128
MIN_TILES = 32
MAX_THREADS = 1


def supports(x: Tensor, weight: Tensor) -> bool:
    """Return whether this is faster for ``x``, and can be: what writes into given memory has no gradient."""
    if x.device.type != 'cpu' or x.dtype not in DTYPES or x.dtype is not weight.dtype:
        return False
    if not runs_eagerly(x) or x.shape[1] != weight.shape[1] or torch.get_num_threads() > MAX_THREADS:
        return False
    down, across = _num_tiles(x)
    return len(x) * down * across >= MIN_TILES


def convolve(x: Tensor, sums: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """Convolve with kernel 3, stride 1 and padding 1, some tiles at a time.

    Shapes:
        x (B, in_channels, H, W), sums of taps (36, in_channels, out_channels) -> (B, out_channels, H, W).
    """
    batch, _, height, width = x.shape
    down, across = _num_tiles(x)
    rows = min(down, max(1, TILES_AT_ONCE // across))
    images = max(1, TILES_AT_ONCE // (down * across))
    out = x.new_empty(batch, height, width, sums.shape[2])
    largest = SPAN**2 * min(images, batch) * rows * across * max(sums.shape[1:])
    buffers = x.new_empty(2, largest)
    for first in range(0, batch, images):
        for row in range(0, down, rows):
            part = slice(first, first + images), slice(row * TILE, (row + rows) * TILE)
            _fill(out[part], x[part[0]], sums, bias, row, min(rows, down - row), across, buffers)
            if relu:
                out[part].relu_()  # while it is in the cache
    return to_nchw(out)


def _fill(
    out: Tensor, x: Tensor, sums: Tensor, bias: Tensor, row: int, rows: int, across: int, buffers: Tensor
) -> None:
    """Compute ``rows`` rows of tiles of some images.

    Shapes:
        out: (B, up to 4 * rows, W, out_channels), which is written.
        x: (B, in_channels, H, W), whole images.
        buffers: (2, enough).
    """
    batch, channels, height, width = x.shape
    count = batch * rows * across
    to_inputs, _, to_results = (matrix.to(x.dtype) for matrix in transforms())
    here, there = buffers

    top, bottom = row * TILE - 1, (row + rows) * TILE + 1  # with the rows around the tiles
    inside = x[:, :, max(top, 0) : min(bottom, height)]
    margins = 1, across * TILE + 1 - width, max(-top, 0), max(bottom - height, 0)
    padded = to_nhwc(functional.pad(inside, margins))
    tiles = padded.unfold(1, SPAN, TILE).unfold(2, SPAN, TILE)  # (B, rows, across, channels, 6, 6)

    values = _like(here, SPAN, SPAN, batch, rows, across, channels)
    values.copy_(tiles.permute(4, 5, 0, 1, 2, 3))
    values = _both_axes(to_inputs, values.view(SPAN, SPAN, -1), there, here)
    products = _like(there, SPAN**2, count, out.shape[-1])
    torch.bmm(values.view(SPAN**2, count, channels), sums, out=products)
    results = _both_axes(to_results, products.view(SPAN, SPAN, -1), here, there)

    results = results.view(TILE, TILE, batch, rows, across, -1).permute(2, 3, 0, 4, 1, 5)
    tiled = results.reshape(batch, rows * TILE, across * TILE, -1)
    torch.add(tiled[:, : out.shape[1], :width], bias, out=out)


def _num_tiles(x: Tensor) -> tuple[int, int]:
    """Return how many tiles there are along the height and the width of a map."""
    return -(-x.shape[2] // TILE), -(-x.shape[3] // TILE)


def _like(memory: Tensor, *shape: int) -> Tensor:
    """Return the beginning of a flat tensor in the given shape."""
    return memory[: torch.Size(shape).numel()].view(shape)


def _both_axes(matrix: Tensor, x: Tensor, between: Tensor, result: Tensor) -> Tensor:
    """Apply a matrix to the first two axes, by way of one buffer into another, which may be that of ``x``.

    Shapes:
        (n, n, L) and a matrix of (m, n) -> (m, m, L).
    """
    m, n = matrix.shape
    half = _like(between, m, n, x.shape[-1])
    torch.mm(matrix, x.reshape(n, -1), out=half.view(m, -1))
    return torch.bmm(matrix.expand(m, m, n), half, out=_like(result, m, m, x.shape[-1]))
