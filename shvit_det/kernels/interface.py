"""The structures of interface.hpp, which describe a layer to the kernels."""

import ctypes
from enum import IntEnum


class StepKind(IntEnum):
    """What a step computes; the order is that of ``Kind`` there."""

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
    """``Step`` there: one layer, the shapes of its maps, their places in the list of maps, its weights."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ('kind', 'bfloat16', 'relu', 'planar', 'joined')),
        ('epsilon', ctypes.c_float),
        *((name, ctypes.c_ssize_t) for name in f'{SIZES} {PLACES}'.split()),
        ('weights', ctypes.c_void_p * 3),
        ('biases', ctypes.c_void_p * 3),
    )


class Level(ctypes.Structure):
    """``Level`` there: a map that regions are on."""

    _fields_ = (
        ('map', ctypes.c_void_p),
        ('height', ctypes.c_ssize_t),
        ('width', ctypes.c_ssize_t),
        ('scale', ctypes.c_float),
    )
