"""Weights and biases in the order in which the kernels read them: in panels of output channels computed together.

The width of a panel depends on the instruction set; ``Kernels.panel`` tells it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


class PackedWeights:
    """Weight and bias of a layer in the order of its kernel, see kernels.cpp; the bias is padded to whole panels."""

    def __init__(self, weight: Tensor, bias: Tensor, panel: int = 1) -> None:
        self.weight = weight.contiguous()
        self.bias = _padded(bias.detach().float(), panel).contiguous()
        self.out_channels = len(bias)
        self.addresses = self.weight.data_ptr(), self.bias.data_ptr()


def pack_convolution(weight: Tensor, bias: Tensor, panel: int) -> PackedWeights:
    """Pack (out_channels, in_channels, kernel, kernel) in panels; pairs of channels stay together in bfloat16."""
    return PackedWeights(_panels(weight, panel), bias, panel)


def pack_transposed(weight: Tensor, bias: Tensor, stride: int, panel: int) -> PackedWeights:
    """Pack (in_channels, out_channels, kernel, kernel) in panels, those of a remainder of row and column together."""
    parts = taps_by_remainder(weight.detach().transpose(0, 1), stride)
    return PackedWeights(torch.cat([_panels(part, panel).flatten() for part in parts]), bias, panel)


def taps_by_remainder(weight: Tensor, stride: int) -> list[Tensor]:
    """Return the taps of a transposed convolution that each remainder of row and column sees, backwards."""
    return [weight[:, :, row::stride, column::stride].flip(2, 3) for row in range(stride) for column in range(stride)]


def pack_depthwise(weight: Tensor, bias: Tensor) -> PackedWeights:
    """Pack (channels, 1, 3, 3) as (3, 3, channels) in float32."""
    return PackedWeights(weight.detach()[:, 0].permute(1, 2, 0).float(), bias)


def pack_winograd(sums: Tensor, bias: Tensor, panel: int) -> PackedWeights:
    """Pack the sums of taps (36, in_channels, out_channels) in panels."""
    return PackedWeights(_padded(sums, panel).unflatten(-1, (-1, panel)).permute(2, 0, 1, 3), bias, panel)


def pack_transposed_winograd(sums: Sequence[Tensor], bias: Tensor, panel: int) -> PackedWeights:
    """Pack the sums of taps (places, in_channels, out_channels), for each remainder of row and column, in panels."""
    panels = [_padded(some, panel).unflatten(-1, (-1, panel)).transpose(1, 2).flatten() for some in sums]
    return PackedWeights(torch.cat(panels), bias, panel)


def _panels(weight: Tensor, panel: int) -> Tensor:
    panels = _padded(weight.detach().permute(2, 3, 1, 0), panel).unflatten(-1, (-1, panel))
    if weight.dtype is torch.bfloat16:  # (rows, columns, channels / 2, 2, panels, panel)
        panels = functional.pad(panels, (0, 0, 0, 0, 0, weight.shape[1] % 2))
        return panels.unflatten(2, (-1, 2)).permute(4, 0, 1, 2, 5, 3)
    return panels.permute(3, 0, 1, 2, 4)


def _padded(x: Tensor, panel: int) -> Tensor:
    """Return ``x`` with zeros after it, so that its last axis is a multiple of a panel."""
    return functional.pad(x, (0, -x.shape[-1] % panel))
