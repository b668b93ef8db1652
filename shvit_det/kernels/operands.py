"""Weights and biases in the order of the kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

PANEL = 32  # output channels that are computed together


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
        panels = functional.pad(panels, (0, 0, 0, 0, 0, weight.shape[1] % 2))
        return panels.unflatten(2, (-1, 2)).permute(4, 0, 1, 2, 5, 3)
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


def pack_transposed_winograd(sums: Sequence[Tensor], bias: Tensor) -> Operands:
    """Return the sums of taps (places, in_channels, out_channels), for each rest of row and column, in panels."""
    panels = [_whole_panels(some).unflatten(-1, (-1, PANEL)).transpose(1, 2).flatten() for some in sums]
    return Operands(torch.cat(panels), _whole_panels(bias.detach().float()), len(bias))
