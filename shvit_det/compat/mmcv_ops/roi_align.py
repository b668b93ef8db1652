"""RoIAlign (arXiv 1703.06870): what ``mmcv.ops.roi_align`` calls.

The average over the samples of a bin is torchvision's, or on a CPU that of :mod:`.roi_average`; the
maximum, which torchvision lacks, is written here.
"""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from .precision import widen
from .regions import Largest, first_pixels, largest_count, pixels_of, write_gradient
from .roi_average import roi_average, roi_average_backward
from .roi_bins import bins_of

__all__ = ['roi_align_backward', 'roi_align_forward']

MAXIMUM = 0  # mmcv's number for the pool mode 'max'; 'avg' is 1


def roi_align_forward(
    features: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the average or the maximum of each bin's samples, 0 for a bin without samples.

    For the maximum, ``argmax_y`` and ``argmax_x`` receive the row and the column of the largest
    sample among those of its bin, or -1. The compiled op writes coordinates there, and loses the gradient of
    a maximum at row -1; small integers are exact in half precision too.

    Shapes: features (B, C, H, W), rois (K, 5), the others (K, C, height, width).
    """
    features, rois = widen(features, rois)
    size = (aligned_height, aligned_width)
    if pool_mode != MAXIMUM:
        if _supports_plain_torch(features):
            output.copy_(roi_average(features, rois, size, spatial_scale, sampling_ratio, aligned))
        else:
            settings = (spatial_scale, *size, sampling_ratio, aligned)
            output.copy_(torch.ops.torchvision.roi_align(features, rois, *settings))
        return
    rows, columns = bins_of(rois, size, spatial_scale, sampling_ratio, aligned)
    num_rows, num_columns = largest_count(rows.num_samples), largest_count(columns.num_samples)
    pixels, first_pixel = pixels_of(features), first_pixels(rois, features)
    largest = Largest(len(rois), *size, pixels)
    for row, column in product(range(num_rows), range(num_columns)):
        has_sample = (row < rows.num_samples) & (column < columns.num_samples)
        active = has_sample.flatten().nonzero().squeeze(1)
        y, x = rows.of(active).points(row), columns.of(active).points(column)
        sample = pixels.new_zeros(())
        for place, weight in _corners(y, x, features):
            sample = sample + pixels[(first_pixel[active] + place).squeeze(3)] * weight
        largest.update(active, sample, row * num_columns + column)
    output.copy_(largest.values())
    best = largest.labels()
    argmax_y.copy_(best.div(max(num_columns, 1), rounding_mode='floor'))
    argmax_x.copy_((best % max(num_columns, 1)).masked_fill(best < 0, -1))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_features: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of the features; the shapes are those of the forward op."""
    grad_output, rois = widen(grad_output, rois)
    size = (aligned_height, aligned_width)
    if pool_mode != MAXIMUM:
        shape = grad_features.shape
        if _supports_plain_torch(grad_features):
            found = roi_average_backward(grad_output, rois, shape, spatial_scale, sampling_ratio, aligned)
        else:
            settings = (spatial_scale, *size, *shape, sampling_ratio, aligned)
            found = torch.ops.torchvision._roi_align_backward(grad_output, rois, *settings)
        grad_features.copy_(found)
        return
    rows, columns = bins_of(rois, size, spatial_scale, sampling_ratio, aligned)
    grad_output, best_row, best_column = (
        tensor.permute(0, 2, 3, 1) for tensor in (grad_output, *widen(argmax_y, argmax_x))
    )
    grad_output = grad_output.masked_fill(best_row < 0, 0)
    y, x = rows.points(best_row), columns.points(best_column)
    first_pixel = first_pixels(rois, grad_features)
    shares = ((first_pixel + place, grad_output * weight) for place, weight in _corners(y, x, grad_features))
    write_gradient(grad_features, shares, grad_output.dtype)


def _supports_plain_torch(features: Tensor) -> bool:
    """Whether :mod:`.roi_average` takes this map: on a CPU, but not into a graph, which would fix the regions."""
    return features.device.type == 'cpu' and not torch.jit.is_tracing() and not torch.compiler.is_compiling()


def _corners(y: Tensor, x: Tensor, features: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Place in the flattened map and weight of the four pixels around each point.

    Points up to one pixel outside take the border's value; those farther out weigh nothing.
    """
    height, width = features.shape[2:]
    is_inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.long(), x.long()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    below, beside = y - top, x - left
    for row, row_weight in ((top, 1 - below), (bottom, below)):
        for column, column_weight in ((left, 1 - beside), (right, beside)):
            yield row * width + column, row_weight * column_weight * is_inside
