"""The compiled kernels as functions of tensors."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from .memory import new_map

PANEL = 32  # output channels that are computed together
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
_ARGUMENTS = {
    'shvit_has_bfloat16': [],
    'shvit_convolve': [_INT, _POINTER, *[_SIZE] * 4, _POINTER, *[_SIZE] * 6, _POINTER, _POINTER, _INT, _INT],
    'shvit_transposed': [_INT, _POINTER, *[_SIZE] * 4, _POINTER, *[_SIZE] * 6, _POINTER, _POINTER, _INT],
    'shvit_linear': [_INT, _POINTER, _SIZE, _SIZE, _POINTER, _SIZE, *[_POINTER] * 3, _INT, _INT],
    'shvit_feed_forward': [_INT, _POINTER, *[_SIZE] * 3, *[_POINTER] * 5, _INT],
    'shvit_attention': [_INT, _POINTER, *[_SIZE] * 5, _POINTER, _POINTER, ctypes.c_float, *[_POINTER] * 5, _INT],
    'shvit_depthwise': [_INT, _POINTER, *[_SIZE] * 4, _POINTER, *[_SIZE] * 3, _POINTER, _POINTER, _INT, _INT],
    'shvit_winograd': [_POINTER, *[_SIZE] * 4, _POINTER, _SIZE, _POINTER, _POINTER, _INT, _INT],
}


class Operands:
    """Weight and bias of a layer as the kernels want them.

    Args:
        weight: In the order of the kernels; see kernels.cpp.
        bias: (out_channels,) or more, float32.
        out_channels: Of the layer.
    """

    def __init__(self, weight: Tensor, bias: Tensor, out_channels: int) -> None:
        self.weight = weight.contiguous()
        self.bias = bias.contiguous()
        self.out_channels = out_channels
        self.addresses = self.weight.data_ptr(), self.bias.data_ptr()


def pack(weight: Tensor, bias: Tensor) -> Operands:
    """Return (out_channels, in_channels, kernel, kernel) in panels; pairs of channels stay together in bfloat16."""
    return Operands(_panels(weight), _whole_panels(bias.detach().float()), len(bias))


def pack_transposed(weight: Tensor, bias: Tensor, stride: int) -> Operands:
    """Return (in_channels, out_channels, kernel, kernel) in panels: by rest of row and column, taps backwards."""
    weight = weight.detach().transpose(0, 1)
    parts = [weight[:, :, row::stride, column::stride].flip(2, 3) for row in range(stride) for column in range(stride)]
    panels = torch.cat([_panels(part).flatten() for part in parts])
    return Operands(panels, _whole_panels(bias.detach().float()), len(bias))


def _panels(weight: Tensor) -> Tensor:
    panels = _whole_panels(weight.detach().permute(2, 3, 1, 0)).unflatten(-1, (-1, PANEL))
    if weight.dtype is torch.bfloat16:  # (rows, columns, channels / 2, 2, panels, PANEL)
        return panels.unflatten(2, (weight.shape[1] // 2, 2)).permute(4, 0, 1, 2, 5, 3)
    return panels.permute(3, 0, 1, 2, 4)


def _whole_panels(x: Tensor) -> Tensor:
    """Return ``x`` with zeros behind it, so that its last axis has whole panels."""
    return functional.pad(x, (0, -x.shape[-1] % PANEL))


def pack_depthwise(weight: Tensor, bias: Tensor) -> Operands:
    """Return (channels, 1, 3, 3) as (3, 3, channels) in float32."""
    return Operands(weight.detach()[:, 0].permute(1, 2, 0).float(), bias.detach().float(), weight.shape[0])


def pack_winograd(sums: Tensor, bias: Tensor) -> Operands:
    """Return the sums of taps (36, in_channels, out_channels) in panels."""
    panels = _whole_panels(sums).unflatten(-1, (-1, PANEL)).permute(2, 0, 1, 3)
    return Operands(panels, _whole_panels(bias.detach().float()), len(bias))


class Kernels:
    """What a built library computes, on as many threads as torch has.

    Inputs are (B, C, H, W), brought into NHWC if they lie otherwise, in float32 or, where :attr:`dtypes` has it,
    bfloat16; so are the results.

    Args:
        library: The shared library.
    """

    def __init__(self, library: Path) -> None:
        loaded = ctypes.CDLL(str(library))
        for name, arguments in _ARGUMENTS.items():
            function = getattr(loaded, name)
            function.argtypes = arguments
            function.restype = None
        loaded.shvit_has_bfloat16.restype = _INT
        self._library = loaded
        self.dtypes = tuple(DTYPES)[: 1 + loaded.shvit_has_bfloat16()]

    def convolve(self, x: Tensor, layer: Operands, kernel: int, stride: int, padding: int, relu: bool) -> Tensor:
        """Convolve, with a bias and maybe a ReLU."""
        x = in_nhwc(x)
        batch, channels, height, width = x.shape
        size = [(side + 2 * padding - kernel) // stride + 1 for side in (height, width)]
        out = new_map(x, layer.out_channels, *size)
        self._library.shvit_convolve(
            DTYPES[x.dtype],
            x.data_ptr(),
            batch,
            height,
            width,
            channels,
            out.data_ptr(),
            *size,
            layer.out_channels,
            kernel,
            stride,
            padding,
            *layer.addresses,
            relu,
            torch.get_num_threads(),
        )
        return out

    def transposed(self, x: Tensor, layer: Operands, kernel: int, stride: int, padding: int) -> Tensor:
        """Apply a transposed convolution with a bias; ``padding`` is cropped on each side."""
        x = in_nhwc(x)
        batch, channels, height, width = x.shape
        size = [stride * (side - 1) + kernel - 2 * padding for side in (height, width)]
        out = new_map(x, layer.out_channels, *size)
        self._library.shvit_transposed(
            DTYPES[x.dtype],
            x.data_ptr(),
            batch,
            height,
            width,
            channels,
            out.data_ptr(),
            *size,
            layer.out_channels,
            kernel,
            stride,
            padding,
            *layer.addresses,
            torch.get_num_threads(),
        )
        return out

    def linear(self, x: Tensor, layer: Operands, relu: bool, residual: Tensor | None = None) -> Tensor:
        """Apply a linear layer to the channels, and add ``residual`` if given."""
        x = in_nhwc(x)
        residual = None if residual is None else in_nhwc(residual)
        batch, channels, height, width = x.shape
        out = new_map(x, layer.out_channels, height, width)
        self._library.shvit_linear(
            DTYPES[x.dtype],
            x.data_ptr(),
            batch * height * width,
            channels,
            out.data_ptr(),
            layer.out_channels,
            *layer.addresses,
            None if residual is None else residual.data_ptr(),
            relu,
            torch.get_num_threads(),
        )
        return out

    def feed_forward(self, x: Tensor, expand: Operands, reduce: Operands) -> Tensor:
        """Return ``x + reduce(relu(expand(x)))``, both linear layers of the channels."""
        x = in_nhwc(x)
        batch, channels, height, width = x.shape
        out = new_map(x, channels, height, width)
        self._library.shvit_feed_forward(
            DTYPES[x.dtype],
            x.data_ptr(),
            batch * height * width,
            channels,
            expand.out_channels,
            out.data_ptr(),
            *expand.addresses,
            *reduce.addresses,
            torch.get_num_threads(),
        )
        return out

    def attention(
        self, x: Tensor, norm: Operands, epsilon: float, project_in: Operands, project_out: Operands, query: int
    ) -> Tensor:
        """Return what :class:`..layers.FusedAttention` does, with ``query`` channels in a query and in a key."""
        x = in_nhwc(x)
        batch, channels, height, width = x.shape
        out = new_map(x, channels, height, width)
        self._library.shvit_attention(
            DTYPES[x.dtype],
            x.data_ptr(),
            batch,
            height * width,
            channels,
            norm.out_channels,
            query,
            *norm.addresses,
            epsilon,
            *project_in.addresses,
            *project_out.addresses,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def depthwise(self, x: Tensor, layer: Operands, stride: int, relu: bool) -> Tensor:
        """Convolve each channel with its own 3x3 kernel, padding 1."""
        x = in_nhwc(x)
        batch, channels, height, width = x.shape
        size = [(side - 1) // stride + 1 for side in (height, width)]
        out = new_map(x, channels, *size)
        self._library.shvit_depthwise(
            DTYPES[x.dtype],
            x.data_ptr(),
            batch,
            height,
            width,
            channels,
            out.data_ptr(),
            *size,
            stride,
            *layer.addresses,
            relu,
            torch.get_num_threads(),
        )
        return out

    def winograd(self, x: Tensor, layer: Operands, relu: bool) -> Tensor:
        """Convolve with kernel 3, stride 1 and padding 1, in float32."""
        x = in_nhwc(x)
        batch, channels, height, width = x.shape
        out = new_map(x, layer.out_channels, height, width)
        self._library.shvit_winograd(
            x.data_ptr(),
            batch,
            height,
            width,
            channels,
            out.data_ptr(),
            layer.out_channels,
            *layer.addresses,
            relu,
            torch.get_num_threads(),
        )
        return out


def in_nhwc(x: Tensor) -> Tensor:
    """Return ``x`` with its numbers in the order of NHWC, without a gap."""
    return x.contiguous(memory_format=torch.channels_last)
