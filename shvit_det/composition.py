"""Several linear layers as one, exactly: what a chain does to an image it also does to the weights of its first layer.

A transposed convolution lays its kernel at every position of its input. Whatever linear layer follows can be applied to
the kernel instead, once, as if the kernel were an image. All functions are differentiable, so the composition serves
training too: the gradients arrive at the parameters of the chain.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class TransposedConv(NamedTuple):
    """The parameters of one transposed convolution on an input that has a further channel of ones.

    The channel of ones carries the biases within the chain. Those of the last layer are ``bias``; those before it pass
    through the zero padding of the last layer, so that they act differently at the border of the image, which a
    constant cannot express but a kernel on a constant input can.

    Shapes:
        weight: (in_channels + 1, out_channels, kernel, kernel).
        bias: (out_channels,).
    """

    weight: Tensor
    bias: Tensor
    stride: int
    padding: int

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, stride * H, stride * W)."""
        return functional.conv_transpose2d(with_ones(x), self.weight, self.bias, self.stride, self.padding)


class Origin(NamedTuple):
    """What a feature map was made of, for a layer that would rather start from there."""

    source: Tensor
    conv: TransposedConv


def remember_origin(made: Tensor, source: Tensor, conv: TransposedConv) -> None:
    """Note on a feature map that ``conv`` made it of ``source``; nothing in compiled code."""
    if not torch.compiler.is_compiling():
        made.shvit_det_origin = Origin(source, conv)  # type: ignore[attr-defined]


def origin_of(made: Tensor) -> Origin | None:
    """Return what :func:`remember_origin` noted on this very tensor; nothing in compiled code."""
    return None if torch.compiler.is_compiling() else getattr(made, 'shvit_det_origin', None)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Return a context without mixed precision on the device of ``x``; the device ``meta`` has none to turn off."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def with_ones(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C + 1, H, W), the last channel of ones."""
    return torch.cat((x, torch.ones_like(x[:, :1])), dim=1)


def compose_upsampling(upsamplings: Sequence[nn.ConvTranspose2d], conv: nn.Conv2d) -> TransposedConv:
    """Return a chain of transposed convolutions and a final convolution as one transposed convolution.

    Exact at the borders too, since the chain's own outputs are cropped nowhere: the final convolution's zero padding
    lies where the composed kernel finds no input.

    Args:
        upsamplings: Transposed convolutions whose kernel is their stride, without padding, first to last.
        conv: A convolution with kernel 2 p + 1, padding p and stride 1.
    """
    weight, bias = upsamplings[0].weight, upsamplings[0].bias
    kernels = torch.cat((weight, _ones_channel(bias, weight)))
    stride = upsamplings[0].stride[0]
    for upsampling in upsamplings[1:]:
        kernels = functional.conv_transpose2d(kernels, upsampling.weight, stride=upsampling.stride)
        kernels = torch.cat((kernels[:-1], kernels[-1:] + _ones_channel(upsampling.bias, kernels)))
        stride *= upsampling.stride[0]
    padding = int(conv.padding[0])
    kernels = functional.conv2d(kernels, conv.weight, padding=2 * padding)
    bias = conv.bias if conv.bias is not None else conv.weight.new_zeros(conv.out_channels)
    return TransposedConv(kernels, bias, stride, padding)


def compose_conv(first: TransposedConv, conv: nn.Conv2d) -> TransposedConv:
    """Return a transposed convolution and a further convolution as one, exact but for a border.

    Here the padding of the further convolution meets outputs that the first one cropped; so the outer ``padding``
    pixels of the result are wrong, on each side, and have to be computed from the first one's outputs.

    Args:
        first: What comes first.
        conv: A convolution with kernel 2 p + 1, padding p and stride 1.
    """
    padding = int(conv.padding[0])
    kernels = functional.conv2d(first.weight, conv.weight, padding=2 * padding)
    bias = torch.einsum('oikl,i->o', conv.weight, first.bias)
    if conv.bias is not None:
        bias = bias + conv.bias
    return TransposedConv(kernels, bias, first.stride, first.padding + padding)


def redo_border(result: Tensor, source: Tensor, conv: Callable[[Tensor], Tensor], ring: int) -> Tensor:
    """Return ``result`` with its outer pixels replaced by those of a convolution of ``source``.

    They are overwritten in place, but not while a graph is traced for export: other runtimes have no cheap operation
    for that.

    Args:
        result: (B, out_channels, H, W).
        source: (B, in_channels, H, W).
        conv: The convolution, with kernel 2 ring + 1, stride 1 and no padding.
        ring: How many pixels on each side are computed.
    """
    reach = 2 * ring
    height, width = source.shape[2:]

    def strip(rows: slice, columns: slice, padding: Sequence[int]) -> Tensor:
        return conv(functional.pad(source[:, :, rows, columns], padding))

    every = slice(None)
    top = strip(slice(0, reach), every, (ring, ring, ring, 0))
    bottom = strip(slice(height - reach, height), every, (ring, ring, 0, ring))
    left = strip(every, slice(0, reach), (ring, 0, ring, ring))
    right = strip(every, slice(width - reach, width), (0, ring, ring, ring))
    if torch.jit.is_tracing():
        inner = slice(ring, -ring)
        middle = torch.cat((left[:, :, inner], result[:, :, inner, inner], right[:, :, inner]), dim=3)
        return torch.cat((top, middle, bottom), dim=2)
    result[:, :, :ring], result[:, :, height - ring :] = top, bottom
    result[:, :, :, :ring], result[:, :, :, width - ring :] = left, right
    return result


def _ones_channel(bias: Tensor | None, kernels: Tensor) -> Tensor:
    """A bias as the kernel that makes it of a channel of ones, of the size of the other kernels."""
    channels, *size = kernels.shape[1:]
    if bias is None:
        return kernels.new_zeros(1, channels, *size)
    return bias[None, :, None, None].expand(1, channels, *size)
