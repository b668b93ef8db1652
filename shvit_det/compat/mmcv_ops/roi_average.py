"""The average of RoIAlign on a CPU, by products of matrices.

The samples of a region lie on a grid, and bilinear interpolation along the rows does not depend on that along the
columns. So the averages of the bins are ``rows @ window @ columns.T`` for every channel: two small matrices of weights
around the pixels that the region sees; and the gradient of these pixels is ``rows.T @ gradient @ columns``. torchvision
takes every sample of every channel by itself: several times slower, and more for maps that lie in channels-last.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .regions import largest_count
from .roi_bins import Bins


class Window(NamedTuple):
    """What one region sees of a map, and with which weights its bins take that.

    Shapes: row_weights (bins, rows), column_weights (bins, columns).
    """

    region: int
    rows: slice
    columns: slice
    row_weights: Tensor
    column_weights: Tensor


def average(features: Tensor, images: Tensor, rows: Bins, columns: Bins, output: Tensor) -> None:
    """Write the mean of each bin's samples, 0 for a bin without samples.

    Shapes: features (B, C, H, W), images (K,), output (K, C, height, width).
    """
    means = output.permute(0, 2, 3, 1)
    for image, windows in _windows(features, images, rows, columns):
        pixels = features[image].permute(1, 2, 0).contiguous()
        for window in windows:
            in_rows = torch.tensordot(window.row_weights, pixels[window.rows, window.columns], 1)
            means[window.region] = window.column_weights @ in_rows


def average_backward(grad: Tensor, images: Tensor, rows: Bins, columns: Bins, grad_features: Tensor) -> None:
    """Write the gradient of the features.

    Shapes: grad (K, C, height, width), images (K,), grad_features (B, C, H, W).
    """
    grad = grad.permute(0, 2, 3, 1)
    _, channels, *extent = grad_features.shape
    for image, windows in _windows(grad_features, images, rows, columns):
        pixels = grad.new_zeros(*extent, channels)
        for window in windows:
            in_rows = torch.tensordot(window.row_weights.t(), grad[window.region], 1)
            pixels[window.rows, window.columns] += window.column_weights.t() @ in_rows
        grad_features[image] = pixels.permute(2, 0, 1)


def _windows(features: Tensor, images: Tensor, rows: Bins, columns: Bins) -> Iterator[tuple[int, Iterator[Window]]]:
    """Yield each image of the batch and the windows of its regions."""
    row_weights, column_weights = (
        _weights(bins, extent) for bins, extent in zip((rows, columns), features.shape[2:], strict=True)
    )
    row_slices, column_slices = _seen(row_weights), _seen(column_weights)
    for image in range(len(features)):
        regions = (images == image).nonzero().flatten().tolist()
        yield (
            image,
            (
                Window(
                    region,
                    row_slices[region],
                    column_slices[region],
                    row_weights[region, :, row_slices[region]],
                    column_weights[region, :, column_slices[region]],
                )
                for region in regions
            ),
        )


def _weights(bins: Bins, extent: int) -> Tensor:
    """How much each pixel along an axis weighs in each bin: (K, bins, extent).

    Points up to one pixel outside take the border's value; those farther out weigh nothing.
    """
    num_samples = bins.num_samples.flatten(1, 2)
    sample = torch.arange(max(0, largest_count(num_samples)), device=num_samples.device)
    points = bins.points(sample).flatten(1, 2)
    is_inside = (sample < num_samples) & (points >= -1) & (points <= extent)
    share = is_inside / num_samples.clamp(min=1)
    points = points.clamp(0, extent - 1)
    before = points.long()
    after = (before + 1).clamp(max=extent - 1)
    beyond = points - before
    weights = points.new_zeros(*points.shape[:2], extent)
    return weights.scatter_add_(2, before, (1 - beyond) * share).scatter_add_(2, after, beyond * share)


def _seen(weights: Tensor) -> list[slice]:
    """The pixels from the first to the last with a weight, for each region."""
    seen = weights.any(1)
    first, behind = seen.int().argmax(1), seen.shape[1] - seen.flip(1).int().argmax(1)
    behind = behind.where(seen.any(1), first)
    return [slice(*ends) for ends in zip(first.tolist(), behind.tolist(), strict=True)]
