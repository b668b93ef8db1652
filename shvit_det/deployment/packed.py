"""Layers whose weights are laid out once as the kernels want them, for inference on a CPU.

Where :mod:`.native` has kernels for this processor, they compute most convolutions, and oneDNN the rest. Eager PyTorch
hands most convolutions with small batches to general matrix products, or lays their weights out anew at every call. The
operations of oneDNN here are those that inductor emits for frozen weights. They are private to torch: where they are
missing, on another device, and while a model is compiled or traced, the plain operations run.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UsageError
from . import native
from .native.functions import FEW_CHANNELS, Kernels
from .native.operands import Operands, pack, pack_depthwise, pack_transposed
from .native.plan import CannotPlanError, Planned

OPERATIONS = (
    '_convolution_pointwise',
    '_reorder_convolution_weight',
    '_convolution_transpose_pointwise',
    '_reorder_convolution_transpose_weight',
    '_linear_pointwise',
    '_reorder_linear_weight',
)
DTYPES = (torch.float32, torch.bfloat16)
MOST_TERMS = 4096  # of a sum that our own kernels compute at once


def usable(x: Tensor) -> bool:
    """Return whether the packed operations can take ``x``."""
    return isinstance(x, Planned) or (
        x.device.type == 'cpu'
        and x.dtype in DTYPES
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and x.numel() > 0
        and not (x.requires_grad and torch.is_grad_enabled())  # they have no gradient
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in OPERATIONS)
    )


def versions(weights: Iterable[Tensor]) -> tuple:
    """Return what is another when weights have changed."""
    return tuple([(w.data_ptr(), None if w.is_inference() else w._version, w.dtype) for w in weights])


class MadeFrom:
    """Something made of weights at the first use, and anew when they have changed, by loading for instance.

    Copies and files do not carry it.
    """

    def __init__(self) -> None:
        self._made: Any = None
        self._state: tuple | None = None

    def get(self, make: Callable[[], Any], *weights: Tensor) -> Any:
        """Return what ``make`` returned for these weights as they are."""
        state = versions(weights)
        if self._state != state:
            self._made, self._state = make(), state
        return self._made

    def __getstate__(self) -> dict:
        return {'_made': None, '_state': None}


class Packed(nn.Module):
    """A layer with a weight, a bias and the packed form of the weight, which is made at the first call.

    Args:
        weight: As the plain layer has it.
        bias: Zeros if None.
        out_channels: The length of the bias.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, out_channels: int) -> None:
        super().__init__()
        bias = weight.new_zeros(out_channels) if bias is None else bias
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.native = True  # whether our own kernels may compute it
        self._packed = MadeFrom()
        self._operands = MadeFrom()

    def packed(self, x: Tensor) -> Tensor:
        """Return the weight as oneDNN wants it."""
        return self._packed.get(lambda: self.pack(x), self.weight)

    def operands(self) -> Operands:
        """Return weight and bias as our own kernels want them."""
        return self._operands.get(lambda: pack(self.weight, self.bias), self.weight, self.bias)

    def kernels_for(self, x: Tensor, suits: bool = True) -> Kernels | None:
        """Return our own kernels if there are any that can take ``x``; none while operations are being watched.

        They do not pass torch's dispatcher, so that a counter of operations, for instance, would not see them.

        Args:
            x: The input.
            suits: Whether they compute such a layer at all.

        Raises:
            CannotPlanError: If ``x`` is only planned and they cannot.
        """
        suits = suits and self.native and x.ndim == 4 and x.dtype == self.weight.dtype
        kernels = native.kernels() if suits and not torch._C._len_torch_dispatch_stack() else None
        if kernels is not None and x.dtype in kernels.dtypes:
            return kernels
        if isinstance(x, Planned):
            raise CannotPlanError
        return None

    def pack(self, x: Tensor) -> Tensor:
        """Return the weight as oneDNN wants it for inputs like ``x``."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> 'Packed':
        if mode:
            raise UsageError('a deployed model cannot be trained: train the model it was made from and deploy that')
        return super().train(mode)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f'{prefix}weight'] = destination[
            f'{prefix}weight'
        ].contiguous()  # safetensors takes no other layout


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
        if _matches(residual, x, self.weight) and (kernels := self.kernels_for(x)) is not None:
            return kernels.linear(x, self.operands(), False, residual)
        operation = torch.ops.mkldnn._linear_pointwise.binary
        return to_nchw(operation(to_nhwc(x), to_nhwc(residual), self.packed(x), self.bias, 'add'))

    def pack(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(self.weight.flatten(1), x.numel() // x.shape[1])


def _matches(residual: Tensor, x: Tensor, weight: Tensor) -> bool:
    """Return whether a residual is one for the result of a 1x1 convolution."""
    return residual.dtype == x.dtype and residual.shape == (x.shape[0], weight.shape[0], *x.shape[2:])


def to_nhwc(x: Tensor) -> Tensor:
    """Return (B, C, H, W) as (B, H, W, C), without a copy."""
    return x.permute(0, 2, 3, 1)


def to_nchw(x: Tensor) -> Tensor:
    """Return (B, H, W, C) as (B, C, H, W), without a copy."""
    return x.permute(0, 3, 1, 2)


class FusedTransposedConv(Packed):
    """A transposed convolution with bias.

    Args:
        weight: (in_channels, out_channels, kernel, kernel).
        bias: (out_channels,).
        stride: Of both axes.
        padding: What is cropped on each side.

    Shapes:
        (B, in_channels, H, W) -> (B, out_channels, stride * (H - 1) + kernel - 2 * padding, likewise).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, padding: int = 0) -> None:
        super().__init__(weight, bias, weight.shape[1])
        self.stride = stride
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        if not usable(x):
            return functional.conv_transpose2d(x, self.weight, self.bias, self.stride, self.padding)
        if (kernels := self.kernels_for(x)) is not None:
            return kernels.transposed(x, self.operands(), self.weight.shape[-1], self.stride, self.padding)
        operation = torch.ops.mkldnn._convolution_transpose_pointwise
        return operation(x, self.packed(x), self.bias, *self._geometry(), 'none', [], '')

    def pack(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_transpose_weight(self.weight, *self._geometry(), list(x.shape))

    def kernels_for(self, x: Tensor, suits: bool = True) -> Kernels | None:
        channels, _, height, width = self.weight.shape
        paired = x.dtype is torch.float32 or channels % 2 == 0
        return super().kernels_for(x, suits and height == width and x.shape[1:2] == (channels,) and paired)

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


def in_layout(x: Tensor, channels_last: bool) -> Tensor:
    """Return ``x`` in memory as NHWC or NCHW."""
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
