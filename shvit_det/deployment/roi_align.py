"""RoIAlign (arXiv 1703.06870) of feature maps that lie in NHWC, on a CPU.

Where :mod:`.native` has kernels for this processor, they compute it; this is for all others. Every value is a
weighted sum of pixels, and in NHWC a pixel is a row of a table: an embedding bag, for which torch has vectorised code.
The samples of a bin share pixels, and their weights are products of one along each axis, so that the weights are added
up along the axes first: three to four times fewer rows are read than samples have corners.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.functions import Kernels
from ..models.unmodified import is_stock
from .backends.choice import HALF, Backend
from .backends.packed import HasKernels, own_kernels, runs_eagerly
from .backends.packing import replaces_methods

DTYPES = (torch.float32, *HALF)


@torch.no_grad()
def roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """Return what ``torchvision.ops.roi_align`` does, without a gradient, in NHWC; fast for float32 features in NHWC.

    Where torchvision fails or its result is undefined, for regions that end before they start and for NaN, samples are
    none or lie backwards.

    Shapes:
        features (B, C, H, W), rois (K, 5) with the image's index and two corners in its pixels -> (K, C, *output_size).
    """
    channels, height, width = features.shape[1:]
    if len(rois) == 0:
        return features.new_zeros(0, channels, *output_size)
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    corners = rois[:, 1:] * spatial_scale
    if aligned:
        corners = corners - 0.5
    start, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        extent = extent.clamp(min=1)
    columns = _axis_weights(start[:, 0], extent[:, 0], output_size[1], width, sampling_ratio)
    rows = _axis_weights(start[:, 1], extent[:, 1], output_size[0], height, sampling_ratio)
    row_places = (rows.pixels + rois[:, 0].int()[rows.regions] * height) * width
    indices, weights, counts = _products(rows, columns, row_places)
    pooled = functional.embedding_bag(indices, table, _starts(counts), mode='sum', per_sample_weights=weights)
    return pooled.view(len(rois), *output_size, channels).permute(0, 3, 1, 2)


class _AxisWeights(NamedTuple):
    """What each pixel along one axis weighs in the bins of K regions: a list ordered by region, bin and pixel.

    Shapes: counts (K, bins), how many pixels each bin has; the others (counts.sum(),).
    """

    counts: Tensor
    regions: Tensor
    pixels: Tensor
    weights: Tensor


def _axis_weights(start: Tensor, extent: Tensor, num_bins: int, size: int, sampling_ratio: int) -> _AxisWeights:
    """Add up the weights of the samples; order of operations, and with it rounding, are torchvision's.

    Args:
        start: (K,), where the regions start, in pixels of the map.
        extent: (K,), how long they are.
        num_bins: Bins of a region.
        size: Of the map.
        sampling_ratio: Samples of a bin; 0 for as many as it is long, rounded up.
    """
    length = extent / num_bins
    num_samples = torch.full_like(length, sampling_ratio) if sampling_ratio > 0 else length.ceil()
    num_samples = num_samples.int().clamp(min=0)  # an integer first: of NaN too, this leaves none
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
    bins = used.div(size, rounding_mode='floor')
    counts = bins.bincount(minlength=len(start) * num_bins).int().view(-1, num_bins)
    return _AxisWeights(counts, bins.div(num_bins, rounding_mode='floor'), (used - bins * size).int(), sums[used])


def _products(rows: _AxisWeights, columns: _AxisWeights, row_places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Combine each bin's rows with its columns.

    Args:
        rows: Along the height.
        columns: Along the width.
        row_places: Where in the table each row of ``rows`` begins.

    Returns:
        Places in the table and weights, bin after bin, and how many each of the K * height * width bins has.
    """
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
    indices = row_places[row].index_select(0, line) + columns.pixels.index_select(0, column)
    weights = rows.weights[row].index_select(0, line) * columns.weights.index_select(0, column)
    return indices, weights, num_rows * num_columns


def _spread(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for as many things as all counts together, which count each belongs to and its number there."""
    owner = torch.repeat_interleave(counts)
    return owner, torch.arange(len(owner), dtype=counts.dtype, device='cpu') - _starts(counts)[owner]


def _starts(counts: Tensor) -> Tensor:
    """Return how many there are before each count's first."""
    return counts.cumsum(0, dtype=counts.dtype) - counts


class ChannelsLastRoIAlign(HasKernels):
    """An mmcv ``RoIAlign`` of averages that takes features in NHWC as they are, on a CPU.

    Where it cannot, the plain layer runs. Regions are float32, and features in half precision are pooled in that.

    Args:
        plain: The plain layer.

    Shapes:
        (B, C, H, W), (K, 5) -> (K, C, *output_size), in NHWC where the features are.
    """

    def __init__(self, plain: RoIAlign) -> None:
        super().__init__()
        self.plain = plain
        self.output_size = plain.output_size
        self.spatial_scale = plain.spatial_scale
        self.sampling_ratio = plain.sampling_ratio
        self.pool_mode = plain.pool_mode
        self.aligned = plain.aligned

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        if features.dtype in HALF:
            wide, rois = features.float(), rois.float()
        else:
            wide, rois = features, rois.to(features.dtype)
        if not usable(features):
            return self.plain(wide, rois).to(features.dtype)
        backend, dtype = self.choose(features)
        if backend is Backend.KERNELS:
            levels = rois.new_zeros(len(rois))
            return self.on_levels(own_kernels(), [features.to(dtype)], [self], rois, levels).to(features.dtype)
        settings = self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        return roi_align(wide, rois, *settings).to(features.dtype)

    def on_levels(
        self,
        kernels: Kernels,
        features: Sequence[Tensor],
        layers: Sequence[Any],
        rois: Tensor,
        levels: Tensor,
        planar: bool = False,
    ) -> Tensor:
        """Pool regions, each from its level, with the layers of the levels, which differ in their scales alone."""
        scales = [layer.spatial_scale for layer in layers]
        settings = self.output_size, self.sampling_ratio, self.aligned
        return kernels.roi_align(features, rois.float(), levels, scales, *settings, planar)


class RoIFeatures:
    """Stands in for an extractor's ``forward``: pools all regions at once, from the features as they are.

    mmdet pools the regions of each level by themselves and then copies them to their places. It also rounds the
    regions to the features' data type, so that where its way is taken, features in half precision are cast to float32.

    Args:
        extractor: Its layers are of :class:`ChannelsLastRoIAlign`.
        planar: Whether results lie as NCHW, which is the order of what a linear layer takes.
    """

    def __init__(self, extractor: Any, planar: bool) -> None:
        self.extractor = extractor
        self.planar = planar

    def __call__(self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        layers = self.extractor.roi_layers
        if roi_scale_factor is None and len(rois) > 0 and all(map(usable, feats)):
            backend, dtype = layers[0].choose(feats[0])
            if backend is Backend.KERNELS:
                levels = self.extractor.map_roi_levels(rois.float(), len(feats))
                maps = [feature.to(dtype) for feature in feats]
                return layers[0].on_levels(own_kernels(), maps, layers[: len(feats)], rois, levels, self.planar)
        feats = [feature.float() if feature.dtype in HALF else feature for feature in feats]
        return SingleRoIExtractor.forward(self.extractor, feats, rois, roi_scale_factor)


def usable(features: Tensor) -> bool:
    """Return whether the weighted sums can be taken of these features: of those in NHWC and without a gradient."""
    return (
        features.device.type == 'cpu'
        and features.dtype in DTYPES
        and features.is_contiguous(memory_format=torch.channels_last)
        and runs_eagerly(features)
    )


def replace_roi_layers(detector: Any) -> None:
    """Replace the RoIAlign layers of a detector's extractors, in place, where they take averages."""
    head = getattr(detector, 'roi_head', None)
    for branch in ('bbox', 'mask'):
        extractors = _parts(getattr(head, f'{branch}_roi_extractor', None))
        linear = [_starts_linear(part) for part in _parts(getattr(head, f'{branch}_head', None))]
        for extractor in extractors:
            if type(extractor) is SingleRoIExtractor and not replaces_methods(extractor):
                extractor.roi_layers = nn.ModuleList(_faster(layer) for layer in extractor.roi_layers)
                if all(isinstance(layer, ChannelsLastRoIAlign) for layer in extractor.roi_layers):
                    extractor.forward = RoIFeatures(extractor, planar=all(linear))


def _parts(found: Any) -> list[Any]:
    """Return the stages of a cascade, or what is alone."""
    return list(found) if isinstance(found, nn.ModuleList) else [found]


def _starts_linear(head: Any) -> bool:
    """Return whether a head of mmdet's ``ConvFCBBoxHead`` kind has linear layers first."""
    return getattr(head, 'num_shared_convs', 1) == 0 and getattr(head, 'num_shared_fcs', 0) > 0


def _faster(layer: Any) -> nn.Module:
    """Return the faster form of a RoI layer: itself where it has none."""
    return ChannelsLastRoIAlign(layer) if is_stock(layer, RoIAlign) and layer.pool_mode == 'avg' else layer
