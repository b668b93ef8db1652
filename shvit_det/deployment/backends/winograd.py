"""3x3 convolutions with a quarter of the multiplications: Winograd's minimal filtering, F(4x4, 3x3), exactly.

Along one axis, four neighbouring results of a kernel with three taps depend on six inputs. Six products, of sums of
inputs with sums of taps, are enough to give those results, where the plain way takes twelve; along two axes it is 36
instead of 144 (Lavin and Gray, arXiv 1509.09308). With many channels the products are 36 matrix products, beside which
the sums cost little: those of the taps are made once, those of inputs and results for some tiles at a time.
"""

import functools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.operands import Operands, pack_transposed_winograd, pack_winograd
from .convolutions import FusedConv, FusedTransposedConv
from .packed import own_kernels, runs_eagerly, to_nchw, to_nhwc

TILE = 4
SPAN = TILE + 2  # inputs along one axis
# The products are values of polynomials at these points and at infinity. Of the choices tried these round the least,
# about as much as the direct convolution, and all that is made of them but the weights is exact in binary.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
DTYPES = (torch.float32, torch.float64)
# Measured on one thread with 1 MiB of L2 cache: so many tiles at once keep intermediate results in the caches while the
# matrix products are long enough; from so many tiles and channels on, this is faster than the direct convolution, which
# reads a quarter of the weights. On two threads it is not, on most maps.
TILES_AT_ONCE = 128
MIN_TILES = 32
MIN_CHANNELS = 128
MAX_THREADS = 1
MIN_PIXELS = 400  # of the input of a transposed convolution: sums of taps are many


def suits(weight: Tensor, stride: int, padding: int, groups: int) -> bool:
    """Return whether a convolution is one that :class:`WinogradConv` computes and makes faster."""
    simple = weight.shape[2:] == (3, 3) and (stride, padding, groups) == (1, 1, 1)
    return simple and min(weight.shape[:2]) >= MIN_CHANNELS


@functools.cache
def transforms(num_taps: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Return the matrices for inputs (6, 6), taps (6, 3) and results (4, 6) along one axis, in float64.

    ``results @ ((inputs @ x) * (taps @ w))`` are the sums ``x[i] * w[0] + x[i + 1] * w[1] + x[i + 2] * w[2]``. With two
    taps there are five results; the matrix for inputs is the same.
    """
    points, tile = np.array(POINTS), SPAN + 1 - num_taps
    last = len(points)  # the row of the point at infinity
    inputs, taps, results = np.zeros((SPAN, SPAN)), np.zeros((SPAN, num_taps)), np.zeros((tile, SPAN))
    for row, point in enumerate(points):
        others = np.delete(points, row)
        inputs[row, :last] = np.poly(others)[::-1]
        taps[row] = point ** np.arange(num_taps) / np.prod(point - others)
        results[:, row] = point ** np.arange(tile)
    inputs[last] = np.poly(points)[::-1]
    taps[last, -1] = results[-1, last] = 1
    return torch.from_numpy(inputs), torch.from_numpy(taps), torch.from_numpy(results)


class WinogradConv(FusedConv):
    """A :class:`FusedConv` with kernel 3, stride 1 and padding 1 that takes the shorter way where that is faster.

    Elsewhere, on small maps for instance, it is a plain :class:`FusedConv`.

    Args:
        weight: (out_channels, in_channels, 3, 3).
        bias: (out_channels,).
        relu: Whether a ReLU follows.

    Shapes:
        (B, in_channels, H, W) -> (B, out_channels, H, W), in memory as NHWC.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, relu: bool = False) -> None:
        super().__init__(weight, bias, stride=1, padding=1, relu=relu)

    def _by_kernels(self, x: Tensor) -> Tensor:
        operands = self.made('winograd kernels', lambda: pack_winograd(self._sums(torch.float32), self.bias))
        return own_kernels().winograd(x, operands, self.relu)

    def _by_onednn(self, x: Tensor) -> Tensor:
        return self._by_tiles(x) if self._can(x) else super()._by_onednn(x)

    def _plain(self, x: Tensor) -> Tensor:
        return self._by_tiles(x) if self._can(x) else super()._plain(x)

    def _by_tiles(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        down, across = _tiles(x)
        rows = min(down, max(1, TILES_AT_ONCE // across))
        images = max(1, TILES_AT_ONCE // (down * across))
        out = x.new_empty(batch, height, width, self.weight.shape[0])
        largest = SPAN**2 * min(images, batch) * rows * across * max(self.weight.shape[:2])
        buffers = x.new_empty(2, largest)
        for first in range(0, batch, images):
            for row in range(0, down, rows):
                part = slice(first, first + images), slice(row * TILE, (row + rows) * TILE)
                self._fill(out[part], x[part[0]], row, min(rows, down - row), across, buffers)
        return to_nchw(out)

    def _fill(self, out: Tensor, x: Tensor, row: int, rows: int, across: int, buffers: Tensor) -> None:
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
        torch.bmm(values.view(SPAN**2, count, channels), self.transformed(), out=products)
        results = _both_axes(to_results, products.view(SPAN, SPAN, -1), here, there)

        results = results.view(TILE, TILE, batch, rows, across, -1).permute(2, 3, 0, 4, 1, 5)
        whole = results.reshape(batch, rows * TILE, across * TILE, -1)
        torch.add(whole[:, : out.shape[1], :width], self.bias, out=out)
        if self.relu:
            out.relu_()

    def transformed(self) -> Tensor:
        """Return the sums of the taps (36, in_channels, out_channels)."""
        return self.made('winograd', lambda: self._sums(self.weight.dtype))

    def _sums(self, dtype: torch.dtype) -> Tensor:
        taps = transforms()[1]
        sums = torch.einsum('ik,jl,ockl->ijco', taps, taps, self.weight.detach().double())
        return sums.flatten(0, 1).to(dtype).contiguous()

    def _can(self, x: Tensor) -> bool:
        """Return whether this is faster, and can be: what writes into given memory has no gradient."""
        known = x.device.type == 'cpu' and x.dtype in DTYPES and x.dtype is self.weight.dtype
        if not (known and runs_eagerly(x) and x.shape[1] == self.weight.shape[1]):
            return False
        if torch.get_num_threads() > MAX_THREADS:
            return False
        down, across = _tiles(x)
        return len(x) * down * across >= MIN_TILES


def _tiles(x: Tensor) -> tuple[int, int]:
    """Return how many tiles there are along the height and the width of a map."""
    return -(-x.shape[2] // TILE), -(-x.shape[3] // TILE)


class WinogradTransposedConv(FusedTransposedConv):
    """A :class:`FusedTransposedConv` that takes the shorter way where our own kernels do and that is faster.

    Results whose row and column leave the same rests divided by the stride are a convolution with every stride-th tap:
    of those of the neck and the RPN two or one along an axis. For two taps, five neighbouring results are six products.
    The sums of taps take nine times the memory of the weights where there are two along each axis.
    """

    def suits_kernels(self, x: Tensor) -> bool:
        return self._pays(x) or super().suits_kernels(x)

    def _by_kernels(self, x: Tensor) -> Tensor:
        if not self._pays(x):
            return super()._by_kernels(x)
        operands, kernel = self.made('winograd kernels', self._sums), self.weight.shape[-1]
        return own_kernels().transposed_winograd(x, operands, kernel, self.stride, self.padding, self.relu)

    def _pays(self, x: Tensor) -> bool:
        """Return whether all pairs of rests have one or two taps, enough of them two, and the map is large enough.

        In bfloat16 the direct form multiplies twice as fast, so that all of them must have two.
        """
        channels, out_channels, kernel, width = self.weight.shape
        if x.ndim != 4 or x.shape[1] != channels or kernel != width:
            return False
        least = 2 * self.stride if x.dtype is torch.bfloat16 else self.stride + 1
        some = least <= kernel <= 2 * self.stride
        return some and min(channels, out_channels) >= MIN_CHANNELS and x.numel() >= MIN_PIXELS * channels

    def _sums(self) -> Operands:
        weight, stride = self.weight.detach().double(), self.stride
        one_tap = torch.ones(1, 1, dtype=torch.float64, device='cpu')
        parts = []
        for row in range(stride):
            for column in range(stride):
                taps = weight[:, :, row::stride, column::stride].flip(2, 3)
                down, across = (transforms(2)[1] if size == 2 else one_tap for size in taps.shape[2:])
                sums = torch.einsum('ik,jl,cokl->ijco', down, across, taps)
                parts.append(sums.flatten(0, 1).float())
        return pack_transposed_winograd(parts, self.bias)


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
