"""Winograd's minimal filtering: the matrices that turn inputs, taps and products into each other, exactly.

Along one axis, four neighbouring results of a kernel with three taps depend on six inputs. Six products, of sums of
inputs with sums of taps, give those results, where the direct convolution takes twelve; along two axes it is 36 instead
of 144 (Lavin and Gray, arXiv 1509.09308). With many channels the products are 36 matrix products, and the sums cost
little: those of the taps are computed once, those of inputs and results for some tiles at a time.
"""

import functools

import numpy as np
import torch
from torch import Tensor

TILE = 4
SPAN = TILE + 2  # inputs along one axis
# The products are values of polynomials at these points and at infinity. Of the choices tried, these have the
# smallest rounding error, about that of the direct convolution. The matrices of inputs and results are exact in binary.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)


@functools.cache
def transforms(num_taps: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Return the matrices for inputs (6, 6), taps (6, 3) and results (4, 6) along one axis, in float64.

    ``results @ ((inputs @ x) * (taps @ w))`` are the sums ``x[i] * w[0] + x[i + 1] * w[1] + x[i + 2] * w[2]``. With two
    taps there are five results; the matrix for inputs is the same.
    """
    points, tile = np.array(POINTS), SPAN + 1 - num_taps
    last = len(points)  # the row of the point at infinity
    inputs, taps, results = np.zeros((SPAN, SPAN)), np.zeros((SPAN, num_taps)), np.zeros((tile, SPAN))
    for row, point in enumerate(points):
        others = np.delete(points, row)
        inputs[row, :last] = np.poly(others)[::-1]
        taps[row] = point ** np.arange(num_taps) / np.prod(point - others)
        results[:, row] = point ** np.arange(tile)
    inputs[last] = np.poly(points)[::-1]
    taps[last, -1] = results[-1, last] = 1
    return torch.from_numpy(inputs), torch.from_numpy(taps), torch.from_numpy(results)
