"""RoIAlign (arXiv 1703.06870): what ``mmcv.ops.roi_align`` calls.

The average over the samples of a bin is torchvision's; the maximum, which torchvision lacks, is
written here.
"""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from .precision import widen
from .regions import Largest, first_pixels, largest_count, pixels_of, write_gradient

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
    sample among those of its bin, or -1. The compiled op writes coordinates there; small integers
    are exact in half precision too.

    Shapes: features (B, C, H, W), rois (K, 5), the others (K, C, height, width).
    """
    features, rois = widen(features, rois)
    size = (aligned_height, aligned_width)
    if pool_mode != MAXIMUM:
        settings = (spatial_scale, *size, sampling_ratio, aligned)
        output.copy_(torch.ops.torchvision.roi_align(features, rois, *settings))
        return
    rows, columns = _bins(rois, size, spatial_scale, sampling_ratio, aligned)
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
        settings = (spatial_scale, *size, *grad_features.shape, sampling_ratio, aligned)
        grad_features.copy_(torch.ops.torchvision._roi_align_backward(grad_output, rois, *settings))
        return
    rows, columns = _bins(rois, size, spatial_scale, sampling_ratio, aligned)
    grad_output, best_row, best_column = (
        tensor.permute(0, 2, 3, 1) for tensor in (grad_output, *widen(argmax_y, argmax_x))
    )
    grad_output = grad_output.masked_fill(best_row < 0, 0)
    y, x = rows.points(best_row), columns.points(best_column)
    first_pixel = first_pixels(rois, grad_features)
    shares = ((first_pixel + place, grad_output * weight) for place, weight in _corners(y, x, grad_features))
    write_gradient(grad_features, shares, grad_output.dtype)


class _Bins(NamedTuple):
    """The bins of K regions along one axis of the map.

    Shapes: bin_index (bins, 1, 1) for rows or (bins, 1) for columns, the others (K, 1, 1, 1).
    """

    bin_index: Tensor
    start: Tensor
    length: Tensor
    num_samples: Tensor

    def of(self, regions: Tensor) -> '_Bins':
        """The bins of some of the regions."""
        return _Bins(self.bin_index, *(tensor[regions] for tensor in self[1:]))

    def points(self, sample: int | Tensor) -> Tensor:
        """Where the sample of this number lies in each bin, for bins that have it."""
        position = (sample + 0.5) / self.num_samples.clamp(min=1)
        return self.start + (self.bin_index + position) * self.length


def _bins(
    rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> tuple[_Bins, _Bins]:
    """The bins along the rows and along the columns."""
    corners = rois[:, 1:] * spatial_scale
    if aligned:
        corners = corners - 0.5
    start, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        extent = extent.clamp(min=1)
    length = extent / extent.new_tensor([size[1], size[0]])
    num_samples = torch.full_like(length, sampling_ratio) if sampling_ratio > 0 else length.ceil()

    def along(axis: int, bin_index: Tensor) -> _Bins:
        per_region = (tensor[:, axis, None, None, None] for tensor in (start, length, num_samples))
        return _Bins(bin_index, *per_region)

    row_index = torch.arange(size[0], device=rois.device).view(-1, 1, 1)
    column_index = torch.arange(size[1], device=rois.device).view(-1, 1)
    return along(1, row_index), along(0, column_index)


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
