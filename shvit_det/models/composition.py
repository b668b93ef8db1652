"""Several linear layers composed into one, exactly; the neck and the RPN use this, trained and deployed.

A transposed convolution adds its kernel to the output at every position of its input. So a linear layer that follows
can be applied once, to the kernel as if it were an image, instead of to the output. All functions are
differentiable, so that gradients reach the parameters of the composed layers in training.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from mmcv.cnn.bricks.wrappers import Conv2d as WrappedConv2d  # mmcv's convolutions, which also take empty batches
from mmcv.cnn.bricks.wrappers import ConvTranspose2d as WrappedConvTranspose2d
from torch import Tensor, nn
from torch.nn import functional

from .unmodified import is_unmodified

CONVOLUTIONS = (nn.Conv2d, WrappedConv2d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose2d, WrappedConvTranspose2d)
ALL = slice(None)
INNER = slice(1, -1)
SIDES = (  # the outermost pixels of a map, each once: top, bottom, left, right
    (ALL, ALL, slice(None, 1), ALL),
    (ALL, ALL, slice(-1, None), ALL),
    (ALL, ALL, INNER, slice(None, 1)),
    (ALL, ALL, INNER, slice(-1, None)),
)


class TransposedConv(NamedTuple):
    """The parameters of one transposed convolution on an input whose last channel is ones.

    ``bias`` is that of the last composed layer. The biases of the layers before it contribute differently near the
    border of the map, where the last layer also sees its zero padding, so one number per channel cannot express them.
    They are kernels on the channel of ones instead.

    Shapes:
        weight: (in_channels + 1, out_channels, kernel, kernel).
        bias: (out_channels,).
    """

    weight: Tensor
    bias: Tensor
    stride: int
    padding: int

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in_channels + 1, H, W), from :func:`with_ones` -> (B, out_channels, stride * H, stride * W)."""
        return functional.conv_transpose2d(x, self.weight, self.bias, self.stride, self.padding)


def autocast_disabled(device: torch.device) -> AbstractContextManager:
    """Return a context without autocast, to compose weights in their own data type; ``meta`` has no autocast anyway."""
    return nullcontext() if device.type == 'meta' else torch.autocast(device.type, enabled=False)


def with_ones(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C + 1, H, W), the last channel of ones."""
    return torch.cat((x, torch.ones_like(x[:, :1])), dim=1)


def is_plain_conv(conv: Any, kernel: int) -> bool:
    """Return whether ``conv`` is an unchanged convolution of this kernel that keeps the size of its input."""
    return (
        is_unmodified(conv, *CONVOLUTIONS)
        and (conv.kernel_size, conv.stride, conv.padding) == ((kernel, kernel), (1, 1), (kernel // 2, kernel // 2))
        and (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, 'zeros')
    )


def supports_upsampling(upsampling: Any) -> bool:
    """Return whether ``upsampling`` is an unchanged transposed convolution whose kernels do not overlap."""
    return (
        is_unmodified(upsampling, *TRANSPOSED_CONVOLUTIONS)
        and upsampling.kernel_size == upsampling.stride == (upsampling.stride[0],) * 2
        and (upsampling.padding, upsampling.output_padding) == ((0, 0), (0, 0))
        and (upsampling.dilation, upsampling.groups) == ((1, 1), 1)
    )


def supports_chain(upsamplings: Sequence[nn.Module], convs: Sequence[nn.Module]) -> bool:
    """Return whether :func:`compose_upsampling` supports the first of the upsamplings, followed by one of the convs."""
    dtypes = {parameter.dtype for layer in (*upsamplings, *convs) for parameter in layer.parameters()}
    plain = all(is_plain_conv(conv, 3) for conv in convs)
    return len(dtypes) == 1 and plain and all(map(supports_upsampling, upsamplings))


def compose_upsampling(upsamplings: Sequence[nn.ConvTranspose2d], conv: nn.Conv2d) -> TransposedConv:
    """Return a chain of transposed convolutions and a final convolution as one transposed convolution.

    Exact at the borders too: no output of the chain is cropped, so the composed kernel finds no input exactly where the
    final convolution has its zero padding.

    The upsamplings have no padding, and kernels of their stride. ``conv`` is as in :func:`compose_conv`.
    """
    weight, bias = upsamplings[0].weight, upsamplings[0].bias
    kernels = torch.cat((weight, _ones_channel(bias, weight)))
    stride = upsamplings[0].stride[0]
    for upsampling in upsamplings[1:]:
        kernels = functional.conv_transpose2d(kernels, upsampling.weight, stride=upsampling.stride)
        kernels = torch.cat((kernels[:-1], kernels[-1:] + _ones_channel(upsampling.bias, kernels)))
        stride *= upsampling.stride[0]
    no_bias = conv.weight.new_zeros(conv.in_channels)  # all are kernels on the channel of ones
    return compose_conv(TransposedConv(kernels, no_bias, stride, 0), conv)


def compose_conv(first: TransposedConv, conv: nn.Conv2d) -> TransposedConv:
    """Return a transposed convolution and a further convolution as one, exact but for a border.

    The first layer crops its outputs, and the further convolution has zeros in their place. The composed layer does not
    crop them, so the outer ``padding`` pixels of its result are wrong on each side; :func:`border` and
    :func:`overwrite_border` repair them. ``conv`` has kernel 2 p + 1, padding p and stride 1.
    """
    padding = int(conv.padding[0])
    kernels = functional.conv2d(first.weight, conv.weight, padding=2 * padding)
    bias = torch.einsum('oikl,i->o', conv.weight, first.bias)
    if conv.bias is not None:
        bias = bias + conv.bias
    return TransposedConv(kernels, bias, first.stride, first.padding + padding)


def border(conv: Callable[[Tensor], Tensor], edges: Sequence[Tensor]) -> list[Tensor]:
    """Return the outermost pixels of a 3x3 convolution on a map of 3 pixels and more, in the places of ``SIDES``.

    Args:
        conv: The convolution with stride 1 and without its padding.
        edges: The two outermost rows at the top and at the bottom of the map, (B, C, 2, W), and the two outermost
            columns on the left and on the right, (B, C, H, 2).
    """
    paddings = (1, 1, 1, 0), (1, 1, 0, 1), (1, 0, 0, 0), (0, 1, 0, 0)
    return [conv(functional.pad(edge, padding)) for edge, padding in zip(edges, paddings, strict=True)]


def overwrite_border(result: Tensor, sides: Iterable[Tensor]) -> Tensor:
    """Return ``result`` with its outermost pixels replaced by what :func:`border` returned.

    It is overwritten in place, but not while a graph is traced, since other runtimes have no cheap operation for that,
    nor where a gradient may need the pixels that were there.
    """
    if torch.jit.is_tracing() or (result.requires_grad and torch.is_grad_enabled()):
        top, bottom, left, right = sides
        middle = torch.cat((left, result[:, :, INNER, INNER], right), dim=3)
        return torch.cat((top, middle, bottom), dim=2)
    for place, side in zip(SIDES, sides, strict=True):
        result[place] = side
    return result


def _ones_channel(bias: Tensor | None, kernels: Tensor) -> Tensor:
    """Return the kernel, of the size of the others, that turns a channel of ones into a bias."""
    bias = kernels.new_zeros(kernels.shape[1]) if bias is None else bias
    return bias[None, :, None, None].expand_as(kernels[:1])
