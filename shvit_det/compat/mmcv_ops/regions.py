"""What the poolings of regions share; regions are rows (image index, x1, y1, x2, y2).

The poolings that are written here walk over the samples that a bin can have, for all regions, bins
and channels at once, and need a few times the memory of their output. Within them tensors are
(K, height, width, C), and a map is a list of B * H * W pixels.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


class Largest:
    """The largest samples so far of all bins of K regions, and their labels; the first one wins."""

    def __init__(self, num_regions: int, height: int, width: int, pixels: Tensor) -> None:
        shape = (num_regions, height, width, pixels.size(1))
        self._values = pixels.new_full(shape, -torch.inf)
        self._labels = pixels.new_full(shape, -1, dtype=torch.long)

    def update(self, regions: Tensor, samples: Tensor, labels: int | Tensor) -> None:
        """Take in one sample (height, width, C) for each of these regions."""
        values = self._values[regions]
        is_larger = samples > values
        self._values[regions] = torch.where(is_larger, samples, values)
        self._labels[regions] = torch.where(is_larger, labels, self._labels[regions])

    def values(self) -> Tensor:
        """(K, C, height, width), 0 where there was no sample."""
        return self._values.masked_fill(self._labels < 0, 0).permute(0, 3, 1, 2)

    def labels(self) -> Tensor:
        """(K, C, height, width), -1 where there was no sample."""
        return self._labels.permute(0, 3, 1, 2)


def largest_count(counts: Tensor) -> int:
    """The largest of the regions' counts; there may be no regions."""
    return int(counts.max()) if counts.numel() else 0


def pixels_of(features: Tensor) -> Tensor:
    """(B, C, H, W) as a list of pixels: (B * H * W, C)."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def first_pixels(rois: Tensor, features: Tensor) -> Tensor:
    """Where the image of each region starts in the list of pixels: (K, 1, 1, 1)."""
    height, width = features.shape[2:]
    return (rois[:, 0].long() * (height * width)).view(-1, 1, 1, 1)


def write_gradient(grad_features: Tensor, shares: Iterable[tuple[Tensor, Tensor]], dtype: torch.dtype) -> None:
    """Sum pairs of pixels and gradients, each (K, height, width, C), into the gradient of a map."""
    pixels = torch.zeros_like(pixels_of(grad_features), dtype=dtype)
    for pixel, gradient in shares:
        pixels.scatter_add_(0, pixel.expand_as(gradient).flatten(0, 2), gradient.flatten(0, 2))
    batch_size, _, height, width = grad_features.shape
    grad_features.copy_(pixels.unflatten(0, (batch_size, height, width)).permute(0, 3, 1, 2))
