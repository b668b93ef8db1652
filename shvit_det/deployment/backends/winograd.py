"""Convolutions of many channels that our own kernels compute by Winograd's minimal filtering."""

import torch
from torch import Tensor

from ...kernels.packed_weights import PackedWeights, pack_transposed_winograd, pack_winograd
from .convolutions import FusedConv, FusedTransposedConv
from .deployed_layer import own_kernels
from .winograd_transforms import transforms

MIN_CHANNELS = 128  # fewer make the sums as expensive as the products
MIN_PIXELS = 400  # of the input of a transposed convolution: sums of taps are many


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
        taps = transforms()[1]
        sums = torch.einsum('ik,jl,ockl->ijco', taps, taps, self.weight.detach().double())
        return pack_winograd(sums.flatten(0, 1).float(), self.bias, own_kernels().panel)


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
        weight, stride = self.weight.detach().double(), self.stride
        one_tap = torch.ones(1, 1, dtype=torch.float64, device='cpu')
        parts = []
        for row in range(stride):
            for column in range(stride):
                taps = weight[:, :, row::stride, column::stride].flip(2, 3)
                down, across = (transforms(2)[1] if size == 2 else one_tap for size in taps.shape[2:])
                sums = torch.einsum('ik,jl,cokl->ijco', down, across, taps)
                parts.append(sums.flatten(0, 1).float())
        return pack_transposed_winograd(parts, self.bias, own_kernels().panel)
