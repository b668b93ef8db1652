"""The bins into which RoIAlign divides regions, and where their samples lie."""

from typing import NamedTuple

import torch
from torch import Tensor


class Bins(NamedTuple):
    """The bins of K regions along one axis of the map.

    Shapes: bin_index (bins, 1, 1) for rows or (bins, 1) for columns, the others (K, 1, 1, 1).
    """

    bin_index: Tensor
    start: Tensor
    length: Tensor
    num_samples: Tensor

    def of(self, regions: Tensor) -> 'Bins':
        """The bins of some of the regions."""
        return Bins(self.bin_index, *(tensor[regions] for tensor in self[1:]))

    def points(self, sample: int | Tensor) -> Tensor:
        """Where the sample of this number lies in each bin, for bins that have it.

        In the order in which the compiled op computes: one pixel outside the map its value falls to 0 at once, so that
        a point that is rounded otherwise there has another value.
        """
        within_bin = (sample + 0.5) * self.length / self.num_samples.clamp(min=1)
        return self.start + self.bin_index * self.length + within_bin


def bins_of(
    rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> tuple[Bins, Bins]:
    """The bins along the rows and along the columns."""
    corners = rois[:, 1:] * spatial_scale
    if aligned:
        corners = corners - 0.5
    start, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        extent = extent.clamp(min=1)
    length = extent / extent.new_tensor([size[1], size[0]])
    num_samples = torch.full_like(length, sampling_ratio) if sampling_ratio > 0 else length.ceil()

    def along(axis: int, bin_index: Tensor) -> Bins:
        per_region = (tensor[:, axis, None, None, None] for tensor in (start, length, num_samples))
        return Bins(bin_index, *per_region)

    row_index = torch.arange(size[0], device=rois.device).view(-1, 1, 1)
    column_index = torch.arange(size[1], device=rois.device).view(-1, 1)
    return along(1, row_index), along(0, column_index)
