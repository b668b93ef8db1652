"""Weights and biases in the order in which the kernels read them: in panels of output channels computed together.

The width of a panel depends on the instruction set; ``Kernels.panel`` tells it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


class PackedWeights:
    """Weight and bias of a layer in the order of its kernel, see kernels.cpp; the bias may be padded."""

    def __init__(self, weight: Tensor, bias: Tensor, out_channels: int) -> None:
        self.weight = weight.contiguous()
        self.bias = bias.contiguous()
        self.out_channels = out_channels
        self.addresses = self.weight.data_ptr(), self.bias.data_ptr()


def pack_convolution(weight: Tensor, bias: Tensor, panel: int) -> PackedWeights:
    """Pack (out_channels, in_channels, kernel, kernel) in panels; pairs of channels stay together in bfloat16."""
    return PackedWeights(_panels(weight, panel), _padded_bias(bias, panel), len(bias))


def pack_transposed(weight: Tensor, bias: Tensor, stride: int, panel: int) -> PackedWeights:
    """Pack (in_channels, out_channels, kernel, kernel) in panels: by remainder of row and column, taps backwards."""
    weight = weight.detach().transpose(0, 1)
    parts = [weight[:, :, row::stride, column::stride].flip(2, 3) for row in range(stride) for column in range(stride)]
    panels = torch.cat([_panels(part, panel).flatten() for part in parts])
    return PackedWeights(panels, _padded_bias(bias, panel), len(bias))


def pack_depthwise(weight: Tensor, bias: Tensor) -> PackedWeights:
    """Pack (channels, 1, 3, 3) as (3, 3, channels) in float32."""
    return PackedWeights(weight.detach()[:, 0].permute(1, 2, 0).float(), bias.detach().float(), weight.shape[0])


def pack_winograd(sums: Tensor, bias: Tensor, panel: int) -> PackedWeights:
    """Pack the sums of taps (36, in_channels, out_channels) in panels."""
    panels = _padded(sums, panel).unflatten(-1, (-1, panel)).permute(2, 0, 1, 3)
    return PackedWeights(panels, _padded_bias(bias, panel), len(bias))


def pack_transposed_winograd(sums: Sequence[Tensor], bias: Tensor, panel: int) -> PackedWeights:
    """Pack the sums of taps (places, in_channels, out_channels), for each remainder of row and column, in panels."""
    panels = [_padded(some, panel).unflatten(-1, (-1, panel)).transpose(1, 2).flatten() for some in sums]
    return PackedWeights(torch.cat(panels), _padded_bias(bias, panel), len(bias))


def pack_norm(weight: Tensor, bias: Tensor) -> PackedWeights:
    """Pack scale and shift of the norm that an attention starts with."""
    return PackedWeights(weight.detach().float(), bias.detach().float(), weight.numel())


def _panels(weight: Tensor, panel: int) -> Tensor:
    panels = _padded(weight.detach().permute(2, 3, 1, 0), panel).unflatten(-1, (-1, panel))
    if weight.dtype is torch.bfloat16:  # (rows, columns, channels / 2, 2, panels, panel)
        panels = functional.pad(panels, (0, 0, 0, 0, 0, weight.shape[1] % 2))
        return panels.unflatten(2, (-1, 2)).permute(4, 0, 1, 2, 5, 3)
    return panels.permute(3, 0, 1, 2, 4)


def _padded(x: Tensor, panel: int) -> Tensor:
    """Return ``x`` with zeros after it, so that its last axis is a multiple of a panel."""
    return functional.pad(x, (0, -x.shape[-1] % panel))


def _padded_bias(bias: Tensor, panel: int) -> Tensor:
    return _padded(bias.detach().float(), panel)
