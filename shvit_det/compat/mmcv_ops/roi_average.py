"""The average of RoIAlign (arXiv 1703.06870) on a CPU, in plain torch: for the stand-in and for deployed detectors.

Each bin of a region is a weighted sum of pixels. In NHWC a pixel is a row of a table, so that the sums are an embedding
bag, for which torch has vectorised code; the gradient of the map is the embedding bag of the transposed weights. The
samples of a bin share pixels, and their weights are products of one along each axis, so that the weights are added up
along the axes first: three to four times fewer rows are read than samples have corners. torchvision takes every sample
of every channel by itself, which takes several times as long, and longer still for maps in channels-last.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


def roi_average(
    features: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """Return what ``torchvision.ops.roi_align`` does, in NHWC and without a gradient.

    Where torchvision fails or its result is undefined, samples lie backwards (a region that ends before it starts) or
    there are none (NaN).

    Shapes:
        features (B, C, H, W), rois (K, 5) with the image's index and two corners in its pixels -> (K, C, *output_size).
    """
    channels = features.shape[1]
    if len(rois) == 0:
        return features.new_zeros(0, channels, *output_size)
    geometry = output_size, spatial_scale, sampling_ratio, aligned
    pixels, weights, counts = _weighted_pixels(features.shape, rois, *geometry)
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    pooled = functional.embedding_bag(pixels, table, _starts(counts), mode='sum', per_sample_weights=weights)
    return pooled.view(len(rois), *output_size, channels).permute(0, 3, 1, 2)


def roi_average_backward(
    grad: Tensor, rois: Tensor, shape: torch.Size, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Return the gradient of the features, whose shape is (B, C, H, W), in NHWC.

    Shapes:
        grad (K, C, height, width), rois (K, 5).
    """
    batch, channels, height, width = shape
    if len(rois) == 0:
        return grad.new_zeros(shape)
    geometry = (grad.shape[2], grad.shape[3]), spatial_scale, sampling_ratio, aligned
    pixels, weights, counts = _weighted_pixels(shape, rois, *geometry)
    order = pixels.argsort()
    bin_of = torch.repeat_interleave(counts)[order].int()
    starts = _starts(pixels.bincount(minlength=batch * height * width).int())
    table = grad.permute(0, 2, 3, 1).reshape(-1, channels)
    summed = functional.embedding_bag(bin_of, table, starts, mode='sum', per_sample_weights=weights[order])
    return summed.view(batch, height, width, channels).permute(0, 3, 1, 2)


class _AxisWeights(NamedTuple):
    """What each pixel along one axis weighs in the bins of K regions: a list ordered by region, bin and pixel.

    Shapes: counts (K, bins), how many pixels each bin has; the others (counts.sum(),).
    """

    counts: Tensor
    regions: Tensor
    pixels: Tensor
    weights: Tensor


def _weighted_pixels(
    shape: torch.Size,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which pixels the bins of all regions sum up, as places in the list of B * H * W pixels of a map.

    Returns:
        Places and weights, bin after bin, and how many each of the K * height * width bins has.
    """
    height, width = shape[2:]
    corners = rois[:, 1:] * spatial_scale
    if aligned:
        corners = corners - 0.5
    start, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        extent = extent.clamp(min=1)
    length = extent / extent.new_tensor([output_size[1], output_size[0]])
    num_samples = torch.full_like(length, sampling_ratio) if sampling_ratio > 0 else length.ceil()
    columns, rows = (
        _axis_weights(start[:, axis], length[:, axis], num_samples[:, axis], output_size[1 - axis], size)
        for axis, size in enumerate((width, height))
    )
    row_places = (rows.pixels + rois[:, 0].int()[rows.regions] * height) * width
    return _products(rows, columns, row_places)


def _axis_weights(start: Tensor, length: Tensor, num_samples: Tensor, num_bins: int, size: int) -> _AxisWeights:
    """Add up the weights of the samples along an axis of ``size`` pixels; rounding is torchvision's.

    ``start`` is where each region begins, and its bins have a ``length`` and a number of samples.
    """
    num_samples = num_samples.nan_to_num(0, 0, 0).int().clamp(min=0)
    region, sample = _spread(num_samples * num_bins)
    of_bin = num_samples[region]
    index = sample.div(of_bin, rounding_mode='floor')
    sample = sample - index * of_bin
    of_bin, length = of_bin.to(length), length[region]
    place = start[region] + index * length + (sample + 0.5) * length / of_bin
    inside = ((place >= -1) & (place <= size)).nonzero().squeeze(1)
    place = place[inside].clamp(0, size - 1)
    before = place.long()
    after = (before + 1).clamp(max=size - 1)
    share, nearness = 1 / of_bin[inside], place - before
    first = (region.long() * num_bins + index)[inside] * size
    sums = place.new_zeros(len(start) * num_bins * size)
    sums.index_add_(0, first + before, share * (1 - nearness)).index_add_(0, first + after, share * nearness)
    used = sums.nonzero().squeeze(1)
    owner = used.div(size, rounding_mode='floor')
    counts = owner.bincount(minlength=len(start) * num_bins).int().view(-1, num_bins)
    return _AxisWeights(counts, owner.div(num_bins, rounding_mode='floor'), (used - owner * size).int(), sums[used])


def _products(rows: _AxisWeights, columns: _AxisWeights, row_places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Combine each bin's rows with its columns; ``row_places`` is where each row begins in the list of pixels."""
    size = (*rows.counts.shape, columns.counts.shape[1])
    num_rows, first_row, num_columns, first_column = (
        tensor.expand(size).flatten()
        for tensor in (
            rows.counts[:, :, None],
            _starts(rows.counts.flatten()).view_as(rows.counts)[:, :, None],
            columns.counts[:, None],
            _starts(columns.counts.flatten()).view_as(columns.counts)[:, None],
        )
    )
    bins, row = _spread(num_rows)  # one line for each row of each bin
    row = row + first_row[bins]
    line_columns, line_first = num_columns[bins], first_column[bins]
    line = torch.repeat_interleave(line_columns)
    column = torch.arange(len(line), dtype=torch.int32, device='cpu') + (
        line_first - _starts(line_columns)
    ).index_select(0, line)
    pixels = row_places[row].index_select(0, line) + columns.pixels.index_select(0, column)
    weights = rows.weights[row].index_select(0, line) * columns.weights.index_select(0, column)
    return pixels, weights, num_rows * num_columns


def _spread(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each of ``counts.sum()`` things which count it belongs to, and its number among those."""
    owner = torch.repeat_interleave(counts)
    return owner, torch.arange(len(owner), dtype=counts.dtype, device='cpu') - _starts(counts)[owner]


def _starts(counts: Tensor) -> Tensor:
    """Return how many there are before each count's first."""
    return counts.cumsum(0, dtype=counts.dtype) - counts
