"""Convolutions and linear layers in 8-bit integers, as oneDNN computes them on processors with VNNI.

Weights are divided by a scale for each output channel. Inputs are divided by the step of their range, which a
calibration has found. Sums are exact, and results are float32.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.memory import new_map
from .backend_choice import InputRange

MOST_IMAGES = 25  # at once, of many regions: the C library keeps the memory of such results by itself
Taps = tuple[int, ...]


def quantised(x: Tensor, inputs: InputRange) -> Tensor:
    """Return ``x`` in the steps of its range, as unsigned 8-bit integers; what lies outside becomes the nearest end."""
    steps = torch.quantize_per_tensor(x, inputs.step, inputs.zero, torch.quint8)
    return torch.empty(0, dtype=torch.uint8).set_(steps.untyped_storage(), 0, steps.size(), steps.stride())


def quantised_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight (out_channels, ...) in signed 8-bit integers, and the scale of each output channel."""
    scales = (weight.flatten(1).abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (weight / scales.view(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8), scales


class Int8Weights:
    """The weights of a convolution or linear layer, packed for inputs of a range."""

    def __init__(self, weight: Tensor, bias: Tensor, inputs: InputRange, padding: Sequence[int] = ()) -> None:
        integers, scales = quantised_weight(weight.detach())
        self.inputs = inputs
        self.geometry: tuple[Any, ...] = ()
        if weight.ndim == 4:
            self.geometry = [1, 1], list(padding), [1, 1], 1
            packed = torch.ops.onednn.qconv_prepack(integers, scales, inputs.step, inputs.zero, *self.geometry)
        else:
            packed = torch.ops.onednn.qlinear_prepack(integers, None)
        self.weights = packed, scales, torch.zeros(len(weight), dtype=torch.int32), bias.detach().clone()

    def __call__(self, steps: Tensor, relu: bool = False) -> Tensor:
        """Return the float32 results for inputs that :func:`quantised` returned."""
        operation = torch.ops.onednn.qconv2d_pointwise if self.geometry else torch.ops.onednn.qlinear_pointwise
        output: tuple[Any, ...] = 1.0, 0, torch.float32, 'relu' if relu else 'none', [], ''
        return operation(steps, self.inputs.step, self.inputs.zero, *self.weights, *self.geometry, *output)


def linear(x: Tensor, weights: Int8Weights) -> Tensor:
    """(..., in_features) -> (..., out_features)."""
    return weights(quantised(x.contiguous(), weights.inputs))


def convolve(x: Tensor, weights: Int8Weights, relu: bool) -> Tensor:
    """(B, in_channels, H, W) -> (B, out_channels, H, W), in NHWC."""
    x = x.contiguous(memory_format=torch.channels_last)
    if len(x) <= MOST_IMAGES:
        return weights(quantised(x, weights.inputs), relu)
    result = new_map(x, len(x), len(weights.weights[1]), *x.shape[2:])
    for part, target in zip(x.split(MOST_IMAGES), result.split(MOST_IMAGES), strict=True):
        target.copy_(weights(quantised(part, weights.inputs), relu))
    return result


class Int8TransposedConv:
    """A transposed convolution as one convolution for each group of results that see the same inputs.

    Results whose row and column leave the same remainder when divided by the stride are a convolution with every
    stride-th tap, and remainders with taps at the same places are output channels of one convolution. If the last input
    channel is ones (``with_ones``), it is a bias that differs at the border, and not quantised.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, stride: int, padding: int, inputs: InputRange, with_ones: bool
    ) -> None:
        weight = weight.detach()
        self.stride, self.out_channels = stride, weight.shape[1]
        self.inputs, self.with_ones = inputs, with_ones
        self.groups = []
        along_an_axis = remainders_by_inputs(weight.shape[-1], stride, padding)
        for (rows, down), (columns, across) in product(along_an_axis, along_an_axis):
            parts = [weight[:, :, list(a)][..., list(b)] for a in rows.values() for b in columns.values()]
            taps = torch.stack(parts).transpose(1, 2).flatten(0, 1)
            biases, at_border = bias.repeat(len(parts)), None
            surround = [len(down) - 1, len(across) - 1]
            start = max(*down, 0), max(*across, 0)
            if with_ones:
                ones = functional.conv2d(torch.ones(1, 1, 3, 3), taps[:, -1:], padding=surround)[0]
                ones = ones[:, start[0] : start[0] + 3, start[1] : start[1] + 3].permute(1, 2, 0)
                biases, at_border, taps = biases + ones[1, 1], ones - ones[1, 1], taps[:, :-1]
            packed = Int8Weights(taps.contiguous(), biases, inputs, surround)
            places = slice(min(rows), max(rows) + 1), slice(min(columns), max(columns) + 1)
            self.groups.append((packed, places, start, at_border))

    def __call__(self, x: Tensor, relu: bool) -> Tensor:
        x = (x[:, :-1] if self.with_ones else x).contiguous(memory_format=torch.channels_last)
        (batch, _, height, width), stride = x.shape, self.stride
        result = new_map(x, batch, self.out_channels, stride * height, stride * width)
        blocks = result.permute(0, 2, 3, 1).view(batch, height, stride, width, stride, self.out_channels)
        for part, target in zip(x.split(MOST_IMAGES), blocks.split(MOST_IMAGES), strict=True):
            steps = quantised(part, self.inputs)
            for packed, (rows, columns), (top, left), at_border in self.groups:
                y = packed(steps).permute(0, 2, 3, 1)[:, top : top + height, left : left + width]
                if at_border is not None:
                    _add_at_border(y, at_border)
                place = target[:, :, rows, :, columns]
                y = y.unflatten(3, (place.shape[2], place.shape[4], self.out_channels)).transpose(2, 3)
                place.copy_(y) if not relu else torch.clamp_min(y, 0, out=place)
        return result


def remainders_by_inputs(kernel: int, stride: int, padding: int) -> list[tuple[dict[int, Taps], Taps]]:
    """Return remainders of a row with their taps, and which input rows these see, relative to the block's own."""
    groups: dict[Taps, dict[int, Taps]] = {}
    for remainder in range(stride):
        taps = tuple(tap for tap in reversed(range(kernel)) if (tap - padding - remainder) % stride == 0)
        rows = tuple((remainder + padding - tap) // stride for tap in taps)
        groups.setdefault(rows, {})[remainder] = taps
    return [(remainders, rows) for rows, remainders in groups.items()]


def supports_transposed(kernel: int, stride: int, padding: int) -> bool:
    """Return whether :class:`Int8TransposedConv` computes such a layer: results see their own block and one beside."""
    seen = [rows for _, rows in remainders_by_inputs(kernel, stride, padding)]
    return kernel - 2 * padding == stride and all(rows in ((0,), (-1, 0), (0, 1)) for rows in seen)


def _add_at_border(y: Tensor, at_border: Tensor) -> None:
    """Add to the outermost positions of (B, H, W, channels) what stands for them in (3, 3, channels)."""
    for end in (0, -1):
        y[:, end] += at_border[end, 1]
        y[:, :, end] += at_border[1, end]
        for other in (0, -1):
            y[:, end, other] += at_border[end, other] - at_border[end, 1] - at_border[1, other]
