"""The masks of the objects in a picture, cut to each object: what is drawn, written and joined from tiles."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from ..data.layouts.labels import Losses
from ..data.layouts.writing import polygons_of_part

Mask = NDArray[np.bool_]


class Crop(NamedTuple):
    """The part of a mask around its object, (h, w), and where its upper left pixel is in the picture."""

    mask: Mask
    left: int
    top: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in the picture."""
        return self.left, self.top, self.left + self.mask.shape[1], self.top + self.mask.shape[0]


class CroppedMasks:
    """The masks of a large picture, of which only the parts around the objects are in memory.

    ``masks[i]`` is the mask of one object in the whole picture, (H, W) of bool, and ``numpy.asarray(masks)`` is
    (N, H, W). A slice is of this class too.

    Args:
        crops: One for each object.
        size: Height and width of the picture.
    """

    def __init__(self, crops: Sequence[Crop], size: tuple[int, int]) -> None:
        self.crops, self.size = list(crops), size

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self.crops), *self.size)

    def __len__(self) -> int:
        return len(self.crops)

    @overload
    def __getitem__(self, item: int) -> Mask: ...

    @overload
    def __getitem__(self, item: slice) -> 'CroppedMasks': ...

    def __getitem__(self, item: int | slice) -> 'Mask | CroppedMasks':
        if isinstance(item, slice):
            return CroppedMasks(self.crops[item], self.size)
        crop, mask = self.crops[item], np.zeros(self.size, np.bool_)
        left, top, right, bottom = crop.box
        mask[top:bottom, left:right] = crop.mask
        return mask

    def __iter__(self) -> Iterator[Mask]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        masks = np.zeros(self.shape, np.bool_)
        for index, mask in enumerate(self):
            masks[index] = mask
        return masks if dtype is None else masks.astype(dtype)

    @staticmethod
    def cat(parts: 'Sequence[CroppedMasks]') -> 'CroppedMasks':
        """Return the masks of several slices in one; mmengine's ``InstanceData`` selects objects by it."""
        return CroppedMasks([crop for part in parts for crop in part.crops], parts[0].size)


def crop_of(masks: Any, index: int) -> Crop:
    """Return the mask of an object, from an array (N, H, W) or ``CroppedMasks``; without pixels if it has none."""
    return masks.crops[index] if isinstance(masks, CroppedMasks) else cropped(masks[index])


def cropped(mask: Mask, left: int = 0, top: int = 0) -> Crop:
    """Return the part of a mask around its object; a mask of a tile begins at ``left`` and ``top`` of the picture."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return Crop(np.zeros((0, 0), np.bool_), left, top)
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.bool_)  # a copy, so the mask can go
    return Crop(part, left + int(columns[0]), top + int(rows[0]))


def rle_of(crop: Crop, size: tuple[int, int]) -> dict[str, Any]:
    """Return a mask as COCO's run lengths in a picture of a height and width."""
    height, width = size
    left, top, right, bottom = crop.box
    strip = np.zeros((height, right - left), np.uint8, order='F')  # run lengths go down the columns
    strip[top:bottom] = crop.mask
    changes = np.flatnonzero(np.diff(strip.ravel(order='F'), prepend=0, append=0)) + left * height
    counts = np.diff(changes[changes < height * width], prepend=0, append=height * width).tolist()
    encoded = mask_utils.frPyObjects(dict(size=[height, width], counts=counts), height, width)
    return dict(size=encoded['size'], counts=encoded['counts'].decode())


def polygons_of_crop(crop: Crop) -> list[list[float]]:
    """Return the outlines of a mask, each [x, y, x, y, ...] in pixels of the picture; holes are filled."""
    polygons = polygons_of_part(crop.mask.astype(np.uint8), (crop.left, crop.top), '', Losses())
    return [[round(value, 2) for value in polygon] for polygon in polygons]
