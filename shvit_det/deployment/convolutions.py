"""Convolutions and linear layers whose weights are laid out once."""

import functools

import torch
from torch import Tensor
from torch.nn import functional

from .native.functions import FEW_CHANNELS, Kernels
from .native.operands import Operands, pack, pack_depthwise, pack_transposed
from .packed import Packed, to_nchw, to_nhwc, usable

MOST_TERMS = 4096  # of a sum that our own kernels compute at once


class FusedConv(Packed):
    """A convolution with bias and, if any, a ReLU.

    Args:
        weight: (out_channels, in_channels / groups, kernel, kernel).
        bias: (out_channels,).
        stride: Of both axes.
        padding: Of all sides.
        groups: As in ``nn.Conv2d``.
        relu: Whether a ReLU follows.

    Shapes:
        (B, in_channels, H, W) -> (B, out_channels, H', W').
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        relu: bool = False,
    ) -> None:
        super().__init__(weight, bias, weight.shape[0])
        self.geometry = [padding, padding], [stride, stride], [1, 1], groups
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        if not usable(x):
            return self._plain(x)
        if (kernels := self.kernels_for(x)) is not None:
            (padding, _), (stride, _), _, groups = self.geometry
            if groups == 1:
                return kernels.convolve(x, self.operands(), self.weight.shape[-1], stride, padding, self.relu)
            return kernels.depthwise(x, self.operands(), stride, self.relu)
        operation = torch.ops.mkldnn._convolution_pointwise
        return operation(x, self.packed(x), self.bias, *self.geometry, 'relu' if self.relu else 'none', [], '')

    def suits_kernels(self, dtype: torch.dtype) -> bool:
        """Return whether our own kernels have such a convolution, on inputs of a data type."""
        out_channels, channels, height, width = self.weight.shape
        (padding, _), _, _, groups = self.geometry
        if groups == 1:  # one panel of weights has to stay in the cache, and bfloat16 comes in pairs of channels
            paired = dtype is torch.float32 or channels % 2 == 0 or channels < FEW_CHANNELS
            return paired and height == width and height * width * channels <= MOST_TERMS
        return groups == out_channels and channels == padding == 1 and height == width == 3

    def kernels_for(self, x: Tensor, suits: bool = True) -> Kernels | None:
        fits = x.shape[1:2] == (self.weight.shape[1] * self.geometry[-1],)  # what does not is for torch to refuse
        return super().kernels_for(x, suits and fits and self.suits_kernels(x.dtype))

    def operands(self) -> Operands:
        make = pack if self.geometry[-1] == 1 else pack_depthwise
        return self._operands.get(lambda: make(self.weight, self.bias), self.weight, self.bias)

    def _plain(self, x: Tensor) -> Tensor:
        padding, stride, dilation, groups = self.geometry
        y = functional.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        return y.relu() if self.relu else y

    def pack(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.geometry, list(x.shape))

    def extra_repr(self) -> str:
        return f'{tuple(self.weight.shape)}, geometry={self.geometry}, relu={self.relu}'


class FusedPointwiseConv(FusedConv):
    """A 1x1 convolution, as a linear layer of the channels.

    As a convolution, its weights are laid out for one size of images and are up to 2.5 times slower with another; as a
    linear layer they serve every size as fast.

    Args:
        weight: (out_channels, in_channels, 1, 1).
        bias: (out_channels,).
        relu: Whether a ReLU follows.

    Shapes:
        (B, in_channels, H, W) -> (B, out_channels, H, W).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, relu: bool = False) -> None:
        super().__init__(weight, bias, relu=relu)

    def forward(self, x: Tensor) -> Tensor:
        if not usable(x):
            return self._plain(x)
        if (kernels := self.kernels_for(x)) is not None:
            return kernels.linear(x, self.operands(), self.relu)
        operation = torch.ops.mkldnn._linear_pointwise
        activation = 'relu' if self.relu else 'none'
        return to_nchw(operation(to_nhwc(x), self.packed(x), self.bias, activation, [], ''))

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return ``residual + self(x)``."""
        if not usable(x):
            return residual + self._plain(x)
        if (kernels := self.kernels_for(x, _matches(residual, x, self.weight))) is not None:
            return kernels.linear(x, self.operands(), False, residual)
        operation = torch.ops.mkldnn._linear_pointwise.binary
        return to_nchw(operation(to_nhwc(x), to_nhwc(residual), self.packed(x), self.bias, 'add'))

    def pack(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(self.weight.flatten(1), x.numel() // x.shape[1])


def _matches(residual: Tensor, x: Tensor, weight: Tensor) -> bool:
    """Return whether a residual is one for the result of a 1x1 convolution."""
    return residual.dtype == x.dtype and residual.shape == (x.shape[0], weight.shape[0], *x.shape[2:])


class FusedTransposedConv(Packed):
    """A transposed convolution with bias and, if any, a ReLU.

    Args:
        weight: (in_channels, out_channels, kernel, kernel).
        bias: (out_channels,).
        stride: Of both axes.
        padding: What is cropped on each side.
        relu: Whether a ReLU follows.

    Shapes:
        (B, in_channels, H, W) -> (B, out_channels, stride * (H - 1) + kernel - 2 * padding, likewise).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, padding: int = 0, relu: bool = False) -> None:
        super().__init__(weight, bias, weight.shape[1])
        self.stride = stride
        self.padding = padding
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        if not usable(x):
            y = functional.conv_transpose2d(x, self.weight, self.bias, self.stride, self.padding)
            return y.relu() if self.relu else y
        if (kernels := self.kernels_for(x)) is not None:
            return kernels.transposed(x, self.operands(), self.weight.shape[-1], self.stride, self.padding, self.relu)
        operation = torch.ops.mkldnn._convolution_transpose_pointwise
        return operation(x, self.packed(x), self.bias, *self._geometry(), 'relu' if self.relu else 'none', [], '')

    def pack(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_transpose_weight(self.weight, *self._geometry(), list(x.shape))

    def kernels_for(self, x: Tensor, suits: bool = True) -> Kernels | None:
        paired = x.dtype is torch.float32 or self.weight.shape[0] % 2 == 0
        return super().kernels_for(x, suits and paired and self._fits(x))

    def _fits(self, x: Tensor) -> bool:
        channels, _, height, width = self.weight.shape
        return height == width and x.shape[1:2] == (channels,)

    def operands(self) -> Operands:
        make = functools.partial(pack_transposed, self.weight, self.bias, self.stride)
        return self._operands.get(make, self.weight, self.bias)

    def _geometry(self) -> tuple[list[int], list[int], list[int], list[int], int]:
        return [self.padding] * 2, [0, 0], [self.stride] * 2, [1, 1], 1


class FusedLinear(Packed):
    """A linear layer with bias.

    Shapes:
        (..., in_features) -> (..., out_features).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias, weight.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        if not usable(x):
            return functional.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed(x), self.bias, 'none', [], '')

    def pack(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(self.weight, x.numel() // x.shape[-1])
