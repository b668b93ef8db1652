"""The C++ structures that describe a layer to the kernels."""

import ctypes
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch

from .packed_weights import PackedWeights

TYPES = (torch.float32, torch.bfloat16)


class StepKind(IntEnum):
    """What a step computes; the order is that of kernels.cpp."""

    CONVOLVE = 0
    TRANSPOSED = 1
    LINEAR = 2
    FEED_FORWARD = 3
    ATTENTION = 4
    DEPTHWISE = 5
    WINOGRAD = 6
    SQUEEZE_EXCITE = 7
    INTERLEAVE = 8
    TRANSPOSED_WINOGRAD = 9


SIZES = 'batch height width channels out_height out_width out_channels kernel stride padding hidden query'
PLACES = 'x residual out own own_bytes'


class Step(ctypes.Structure):
    """``Step`` of kernels.cpp: one layer, the shapes of its maps, their places in the list of maps, its weights."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ('kind', 'bfloat16', 'relu', 'planar', 'joined')),
        ('epsilon', ctypes.c_float),
        *((name, ctypes.c_ssize_t) for name in f'{SIZES} {PLACES}'.split()),
        ('weights', ctypes.c_void_p * 3),
        ('biases', ctypes.c_void_p * 3),
    )


class Level(ctypes.Structure):
    """``Level`` of roi_align.hpp: a map that regions are on."""

    _fields_ = (
        ('map', ctypes.c_void_p),
        ('height', ctypes.c_ssize_t),
        ('width', ctypes.c_ssize_t),
        ('scale', ctypes.c_float),
    )


def make_step(
    kind: StepKind,
    dtype: torch.dtype,
    shape: Sequence[int],
    out_shape: Sequence[int],
    layers: tuple[PackedWeights, ...],
    fields: dict[str, Any],
) -> Step:
    """Return a step, but for the places of its maps; whoever runs the step keeps the weights of its layers.

    The map of ``shape`` is (B, C, H, W) and each result (C', H', W'); ``fields`` are what only some kinds have.
    """
    out_channels, out_height, out_width = out_shape
    batch, channels, height, width = shape
    return Step(
        kind=kind,
        bfloat16=dtype is torch.bfloat16,
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        out_channels=out_channels,
        out_height=out_height,
        out_width=out_width,
        weights=(ctypes.c_void_p * 3)(*(layer.addresses[0] for layer in layers)),
        biases=(ctypes.c_void_p * 3)(*(layer.addresses[1] for layer in layers)),
        **fields,
    )
