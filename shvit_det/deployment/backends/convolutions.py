"""Convolutions and linear layers, each as our own kernels, oneDNN and torch compute it."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.kernel_functions import FEW_CHANNELS
from ...kernels.packed_weights import PackedWeights, pack_convolution, pack_depthwise, pack_transposed
from . import int8
from .backend_choice import Backend, InputRange
from .deployed_layer import WeightedLayer, cast, own_kernels, to_nchw, to_nhwc

# A ReLU as oneDNN's operations take it: theirs turns NaN into zero, a slope that rounding takes away keeps NaN.
ONEDNN_RELU: tuple[str, list, str] = ('leaky_relu', [1e-30], '')
ONEDNN_NONE: tuple[str, list, str] = ('none', [], '')
MOST_TERMS = 4096  # of a sum that our own kernels compute at once
INT8_CHANNELS = 128  # fewer make quantising the input a large part of the layer
INT8_WEIGHTS = 1 << 18  # of a linear layer; the last layers, of classes and boxes, have fewer


class FusedConv(WeightedLayer):
    """A convolution with bias and, if any, a ReLU; shapes and other arguments are those of ``nn.Conv2d``."""

    operations: tuple[str, ...] = ('_convolution_pointwise.default', '_reorder_convolution_weight.default')

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
        self.in_channels = weight.shape[1] * groups
        self.geometry = [padding, padding], [stride, stride], [1, 1], groups
        self.relu = relu

    def supports_kernels(self, dtype: torch.dtype) -> bool:
        out_channels, channels, height, width = self.weight.shape
        (padding, _), _, _, groups = self.geometry
        if groups == 1:  # one panel of weights has to stay in the cache, and bfloat16 comes in pairs of channels
            paired = dtype is not torch.bfloat16 or channels % 2 == 0 or channels < FEW_CHANNELS
            return paired and height == width and height * width * channels <= MOST_TERMS
        return groups == out_channels and channels == padding == 1 and height == width == 3

    def _by_kernels(self, x: Tensor) -> Tensor:
        (padding, _), (stride, _), _, groups = self.geometry
        weights = self.kernel_weights(x.dtype)
        if groups == 1:
            return own_kernels().convolve(x, weights, self.weight.shape[-1], stride, padding, self.relu)
        return own_kernels().depthwise(x, weights, stride, self.relu)

    def supports_int8(self) -> bool:
        """Return whether it is a 3x3 convolution of many channels that keeps the size of its input."""
        simple = self.weight.shape[2:] == (3, 3) and self.geometry == ([1, 1], [1, 1], [1, 1], 1)
        return simple and min(self.weight.shape[:2]) >= INT8_CHANNELS

    def _pack_for_int8(self, inputs: InputRange) -> Callable[[Tensor], Tensor]:
        weights = int8.Int8Weights(self.weight, self.bias, inputs, self.geometry[0])
        return partial(int8.convolve, weights=weights, relu=self.relu)

    def _by_onednn(self, x: Tensor) -> Tensor:
        operation = torch.ops.mkldnn._convolution_pointwise
        return operation(x, *self.onednn_weights(x), *self.geometry, *(ONEDNN_RELU if self.relu else ONEDNN_NONE))

    def _by_torch(self, x: Tensor) -> Tensor:
        padding, stride, dilation, groups = self.geometry
        y = functional.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        return y.relu() if self.relu else y

    def _reorder_for_onednn(self, weight: Tensor, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry, list(x.shape))

    def _pack_for_kernels(self, weight: Tensor, panel: int) -> PackedWeights:
        if self.geometry[-1] == 1:
            return pack_convolution(weight, self.bias, panel)
        return pack_depthwise(weight, self.bias)

    def extra_repr(self) -> str:
        return f'{tuple(self.weight.shape)}, geometry={self.geometry}, relu={self.relu}'


class FusedPointwiseConv(FusedConv):
    """A 1x1 convolution, as a linear layer of the channels.

    As a convolution, its weights are laid out for one size of images and are up to 2.5 times slower with another; as
    those of a linear layer they are as fast with every size.
    """

    operations = ('_linear_pointwise.default', '_linear_pointwise.binary', '_reorder_linear_weight.default')

    def __init__(self, weight: Tensor, bias: Tensor | None, relu: bool = False) -> None:
        super().__init__(weight, bias, relu=relu)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return ``residual + self(x)``."""
        if residual.dtype is not x.dtype or residual.shape != (x.shape[0], self.weight.shape[0], *x.shape[2:]):
            return residual + self.compute(x)
        backend, dtype = self.choice_for_input(x)
        if backend is Backend.PLAIN:
            return residual + self._by_torch(x)
        wide, wide_residual = cast(x, dtype), cast(residual, dtype)
        if backend is Backend.KERNELS:
            return cast(own_kernels().linear(wide, self.kernel_weights(dtype), False, wide_residual), x.dtype)
        operation = torch.ops.mkldnn._linear_pointwise.binary
        added = operation(to_nhwc(wide), to_nhwc(wide_residual), *self.onednn_weights(wide), 'add')
        return cast(to_nchw(added), x.dtype)

    def _by_kernels(self, x: Tensor) -> Tensor:
        return own_kernels().linear(x, self.kernel_weights(x.dtype), self.relu)

    def _by_onednn(self, x: Tensor) -> Tensor:
        operation = torch.ops.mkldnn._linear_pointwise
        return to_nchw(operation(to_nhwc(x), *self.onednn_weights(x), *(ONEDNN_RELU if self.relu else ONEDNN_NONE)))

    def _reorder_for_onednn(self, weight: Tensor, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1), x.numel() // x.shape[1])


class FusedTransposedConv(WeightedLayer):
    """A transposed convolution with bias and, if any, a ReLU; shapes are those of ``nn.ConvTranspose2d``."""

    with_ones = False  # whether the last channel of the input is ones
    operations = ('_convolution_transpose_pointwise.default', '_reorder_convolution_transpose_weight.default')

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, padding: int = 0, relu: bool = False) -> None:
        super().__init__(weight, bias, weight.shape[1])
        self.in_channels = weight.shape[0]
        self.stride = stride
        self.padding = padding
        self.relu = relu

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int], list[int], int]:
        """Padding, output padding, stride, dilation and groups, as oneDNN takes them."""
        return [self.padding] * 2, [0, 0], [self.stride] * 2, [1, 1], 1

    def supports_kernels(self, dtype: torch.dtype) -> bool:
        channels, _, height, width = self.weight.shape
        return height == width and (dtype is not torch.bfloat16 or channels % 2 == 0)

    def _by_kernels(self, x: Tensor) -> Tensor:
        kernel, weights = self.weight.shape[-1], self.kernel_weights(x.dtype)
        return own_kernels().transposed(x, weights, kernel, self.stride, self.padding, self.relu)

    def supports_int8(self) -> bool:
        channels, out_channels, kernel, width = self.weight.shape
        supported = kernel == width and int8.supports_transposed(kernel, self.stride, self.padding)
        return supported and min(channels, out_channels) >= INT8_CHANNELS

    def signal(self, x: Tensor) -> Tensor:
        return x[:, :-1] if self.with_ones else x

    def _pack_for_int8(self, inputs: InputRange) -> Callable[[Tensor], Tensor]:
        layer = int8.Int8TransposedConv(self.weight, self.bias, self.stride, self.padding, inputs, self.with_ones)
        return partial(layer, relu=self.relu)

    def _by_onednn(self, x: Tensor) -> Tensor:
        operation = torch.ops.mkldnn._convolution_transpose_pointwise
        return operation(x, *self.onednn_weights(x), *self.geometry, *(ONEDNN_RELU if self.relu else ONEDNN_NONE))

    def _by_torch(self, x: Tensor) -> Tensor:
        y = functional.conv_transpose2d(x, self.weight, self.bias, self.stride, self.padding)
        return y.relu() if self.relu else y

    def _reorder_for_onednn(self, weight: Tensor, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_transpose_weight(weight, *self.geometry, list(x.shape))

    def _pack_for_kernels(self, weight: Tensor, panel: int) -> PackedWeights:
        return pack_transposed(weight, self.bias, self.stride, panel)


class FusedLinear(WeightedLayer):
    """A linear layer with bias; shapes are those of ``nn.Linear``."""

    operations = ('_linear_pointwise.default', '_reorder_linear_weight.default')

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias, weight.shape[0])

    def supports_int8(self) -> bool:
        return self.weight.numel() >= INT8_WEIGHTS

    def _pack_for_int8(self, inputs: InputRange) -> Callable[[Tensor], Tensor]:
        return partial(int8.linear, weights=int8.Int8Weights(self.weight, self.bias, inputs))

    def _by_onednn(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, *self.onednn_weights(x), *ONEDNN_NONE)

    def _by_torch(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)

    def _reorder_for_onednn(self, weight: Tensor, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight, x.numel() // x.shape[-1])
