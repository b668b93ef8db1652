"""Convolutions of many channels that our own kernels compute by Winograd's minimal filtering.

Along one axis, four neighbouring results of a kernel with three taps depend on six inputs. Six products, of sums of
inputs with sums of taps, give those results, where the direct convolution takes twelve; along two axes it is 36 instead
of 144 (Lavin and Gray, arXiv 1509.09308). With many channels the products are 36 matrix products, and the sums cost
little: those of the taps are computed once, those of inputs and results for some tiles at a time.
"""

import functools

import numpy as np
import torch
from torch import Tensor

from ...kernels.packed_weights import PackedWeights, pack_transposed_winograd, pack_winograd, taps_by_remainder
from .convolutions import FusedConv, FusedTransposedConv
from .deployed_layer import own_kernels

MIN_CHANNELS = 128  # fewer make the sums as expensive as the products
MIN_PIXELS = 400  # of the input of a transposed convolution: sums of taps are many
# The products are values of polynomials at these points and at infinity. Of the choices tried, these have the
# smallest rounding error, about that of the direct convolution. The matrices of inputs and results are exact in binary.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)


@functools.cache
def tap_matrix(num_taps: int) -> Tensor:
    """Return the matrix (6, num_taps) of the sums of taps along one axis, in float64; its last row is for infinity."""
    points = np.array(POINTS)
    rows = [point ** np.arange(num_taps) / np.prod(point - np.delete(points, row)) for row, point in enumerate(points)]
    return torch.from_numpy(np.array([*rows, np.arange(num_taps) == num_taps - 1]))


def sums_of_taps(weight: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(in_channels, out_channels, rows, columns) -> (places, in_channels, out_channels), by a matrix for each axis."""
    return torch.einsum('ik,jl,cokl->ijco', down, across, weight).flatten(0, 1).float()


def supports_winograd(weight: Tensor, stride: int, padding: int, groups: int) -> bool:
    """Return whether a convolution is one that :class:`WinogradConv` computes and makes faster."""
    simple = weight.shape[2:] == (3, 3) and (stride, padding, groups) == (1, 1, 1)
    return simple and min(weight.shape[:2]) >= MIN_CHANNELS


class WinogradConv(FusedConv):
    """A :class:`FusedConv` with kernel 3, stride 1 and padding 1 that takes a quarter of the multiplications."""

    def __init__(self, weight: Tensor, bias: Tensor | None, relu: bool = False) -> None:
        super().__init__(weight, bias, stride=1, padding=1, relu=relu)

    def _by_kernels(self, x: Tensor) -> Tensor:
        return own_kernels().winograd(x, self.constant('winograd kernels', self._pack_sums), self.relu)

    def _pack_sums(self) -> PackedWeights:
        sums = sums_of_taps(self.weight.detach().double().transpose(0, 1), tap_matrix(3), tap_matrix(3))
        return pack_winograd(sums, self.bias, own_kernels().panel)


class WinogradTransposedConv(FusedTransposedConv):
    """A :class:`FusedTransposedConv` that our own kernels compute with fewer multiplications, where that is faster.

    Results whose row and column leave the same remainder when divided by the stride are a convolution with every
    stride-th tap: of those of the neck and the RPN two or one along an axis. For two taps, five neighbouring results
    are six products. The sums of taps take nine times the memory of the weights where there are two along each axis.
    """

    def supports_kernels(self, dtype: torch.dtype) -> bool:
        return self._supports_winograd(dtype) or super().supports_kernels(dtype)

    def supports_input(self, x: Tensor, dtype: torch.dtype) -> bool:
        supports = super().supports_kernels(dtype) or (self._supports_winograd(dtype) and self._is_large(x))
        return supports and super().supports_input(x, dtype)

    def _by_kernels(self, x: Tensor) -> Tensor:
        if not (self._is_large(x) and self._supports_winograd(x.dtype)):
            return super()._by_kernels(x)
        weights, kernel = self.constant('winograd kernels', self._pack_sums), self.weight.shape[-1]
        return own_kernels().transposed_winograd(x, weights, kernel, self.stride, self.padding, self.relu)

    def _supports_winograd(self, dtype: torch.dtype) -> bool:
        """Return whether all pairs of remainders have one or two taps, and enough of them two.

        In bfloat16 the direct form multiplies twice as fast, so that all of them must have two.
        """
        channels, out_channels, kernel, width = self.weight.shape
        least = 2 * self.stride if dtype is torch.bfloat16 else self.stride + 1
        return kernel == width and least <= kernel <= 2 * self.stride and min(channels, out_channels) >= MIN_CHANNELS

    def _is_large(self, x: Tensor) -> bool:
        return x.numel() >= MIN_PIXELS * self.weight.shape[0]

    def _pack_sums(self) -> PackedWeights:
        one_tap = torch.ones(1, 1, dtype=torch.float64, device='cpu')
        parts = []
        for taps in taps_by_remainder(self.weight.detach().double(), self.stride):
            down, across = (tap_matrix(2) if size == 2 else one_tap for size in taps.shape[2:])
            parts.append(sums_of_taps(taps, down, across))
        return pack_transposed_winograd(parts, self.bias, own_kernels().panel)
