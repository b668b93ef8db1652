"""RoIPool (arXiv 1504.08083): what ``mmcv.ops.roi_pool`` calls.

torchvision's RoIPool rounds the corners of the regions to pixels and mmcv's does not, so that they
differ wherever the map is smaller than the image. A region turned inside out pools nothing and has no
gradient; the compiled op gives that to the first pixel of the map.
"""

from itertools import product

import torch
from torch import Tensor

from .precision import widen
from .regions import Largest, first_pixels, largest_count, pixels_of, write_gradient

__all__ = ['roi_pool_backward', 'roi_pool_forward']


def roi_pool_forward(
    features: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the maxima over the pixels of each bin, 0 for a bin without pixels.

    Shapes: features (B, C, H, W), rois (K, 5), output and argmax (K, C, height, width); ``argmax``
        receives places in the flattened map, or -1.
    """
    features, rois = widen(features, rois)
    height, width = features.shape[2:]
    top, bottom = _bins(rois[:, 2], rois[:, 4], pooled_height, spatial_scale, height)
    left, right = _bins(rois[:, 1], rois[:, 3], pooled_width, spatial_scale, width)
    num_rows, num_columns = (bottom - top).amax(1), (right - left).amax(1)
    top, bottom = top[:, :, None, None], bottom[:, :, None, None]
    left, right = left[:, None, :, None], right[:, None, :, None]
    pixels, first_pixel = pixels_of(features), first_pixels(rois, features)
    largest = Largest(len(rois), pooled_height, pooled_width, pixels)
    for row, column in product(range(largest_count(num_rows)), range(largest_count(num_columns))):
        active = ((row < num_rows) & (column < num_columns)).nonzero().squeeze(1)
        y, x = top[active] + row, left[active] + column
        is_outside = (y >= bottom[active]) | (x >= right[active])
        place = y.clamp(max=height - 1) * width + x.clamp(max=width - 1)
        sample = pixels[(first_pixel[active] + place).squeeze(3)]
        largest.update(active, sample.masked_fill(is_outside, -torch.inf), place)
    output.copy_(largest.values())
    argmax.copy_(largest.labels())


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_features: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the gradient of the features; the shapes are those of the forward op."""
    grad_output, rois = widen(grad_output, rois)
    place = argmax.permute(0, 2, 3, 1).long()
    share = grad_output.permute(0, 2, 3, 1).masked_fill(place < 0, 0)
    pixel = first_pixels(rois, grad_features) + place.clamp(min=0)
    write_gradient(grad_features, [(pixel, share)], share.dtype)


def _bins(low: Tensor, high: Tensor, num_bins: int, spatial_scale: float, limit: int) -> tuple[Tensor, Tensor]:
    """The bins along one axis: their first pixels, and the pixels behind their last; (K, bins).

    A region includes its last pixel, and neighbouring bins may share pixels.
    """
    start = (low * spatial_scale)[:, None]
    length = ((high + 1) * spatial_scale)[:, None] - start
    index = torch.arange(num_bins, device=low.device)
    first = (index * (length / num_bins) + start).floor()
    behind = ((index + 1) * (length / num_bins) + start).ceil()
    behind = torch.where(length > 0, behind, first)
    return first.clamp(0, limit).long(), behind.clamp(0, limit).long()
