"""Large pictures in overlapping tiles: where the tiles are, and what was found in them as objects of the picture.

An object in the overlap of two tiles is found twice, and one across the border of a tile is cut there. Both views show
the same pixels of the overlap: there they are compared.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .masks import Crop, CroppedMasks, cropped

OVERLAP = 0.2  # of a tile, at least
SMALLEST = 64  # pixels of a side
SAME = 0.5  # the share of pixels from which on two views show one object
BORDER = 0.01  # of a tile's side: an object that comes as close to the border is taken for cut


class Tile(NamedTuple):
    """A part of a picture: left, top, right and bottom in pixels."""

    left: int
    top: int
    right: int
    bottom: int


def tiles_of(height: int, width: int, side: int) -> list[Tile]:
    """Return the tiles that cover a picture, row by row, all of one size, spread evenly."""
    lefts, tops = starts_of(width, side), starts_of(height, side)
    return [Tile(left, top, min(left + side, width), min(top + side, height)) for top in tops for left in lefts]


def starts_of(length: int, side: int) -> list[int]:
    """Return where the tiles along one side of a picture start."""
    last, step = max(0, length - side), int(side * (1 - OVERLAP))
    steps = -(-last // step)  # rounded up
    return [number * last // max(1, steps) for number in range(steps + 1)]


class FoundInTiles:
    """The objects found in the tiles of a picture of a height and width."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.tiles: list[Tile] = []
        self.boxes, self.scores = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        self.labels, self.places = np.zeros(0, np.int64), np.zeros(0, np.int64)  # places: the number of the tile
        self.crops: list[Crop] | None = []

    def add(self, tile: Tile, found: Any) -> None:
        """Add the ``pred_instances`` of a tile, with coordinates in the tile."""
        boxes = found.bboxes.numpy() + np.array([tile.left, tile.top] * 2, np.float32)
        self.boxes = np.concatenate([self.boxes, boxes])
        self.scores = np.concatenate([self.scores, found.scores.numpy()])
        self.labels = np.concatenate([self.labels, found.labels.numpy()])
        self.places = np.concatenate([self.places, np.full(len(boxes), len(self.tiles))])
        self.tiles.append(tile)
        if 'masks' not in found:
            self.crops = None
        elif self.crops is not None:
            self.crops += [cropped(mask, tile.left, tile.top) for mask in found.masks.numpy()]

    def merged(self) -> Any:
        """Return the objects of the picture, those with higher scores first, as ``InstanceData``.

        A view that no border cuts is the object, and other views of it are dropped. Of an object that is cut in all
        tiles, the views are joined.
        """
        from mmengine.structures import InstanceData

        is_cut = self._is_cut()
        boxes, scores, labels, crops = [], [], [], []
        for views in self._groups(is_cut):
            parts = views if is_cut[views[0]] else views[:1]
            boxes.append(np.concatenate([self.boxes[parts, :2].min(0), self.boxes[parts, 2:].max(0)]))
            scores.append(self.scores[views].max())
            labels.append(self.labels[views[0]])
            if self.crops is not None:
                crops.append(joined([self.crops[part] for part in parts]))
        order = np.argsort(-np.array(scores), kind='stable')
        merged = InstanceData(
            bboxes=torch.from_numpy(np.array(boxes, np.float32).reshape(-1, 4)[order]),
            scores=torch.from_numpy(np.array(scores, np.float32)[order]),
            labels=torch.from_numpy(np.array(labels, np.int64)[order]),
        )
        if self.crops is not None:
            merged.masks = CroppedMasks([crops[index] for index in order], self.size)
        return merged

    def _is_cut(self) -> NDArray[np.bool_]:
        """Tell which objects touch a border of their tile that is not the picture's."""
        tiles = np.array(self.tiles, np.float32).reshape(-1, 4)[self.places]
        margin = np.maximum(2, BORDER * (tiles[:, 2:] - tiles[:, :2]).max(1, keepdims=True))
        near = np.abs(self.boxes - tiles) <= margin
        height, width = self.size
        return (near & (tiles != np.array([0, 0, width, height]))).any(1)

    def _groups(self, is_cut: NDArray[np.bool_]) -> Iterator[list[int]]:
        """Yield the views of each object, the best one first."""
        is_free = np.ones(len(self.scores), np.bool_)
        for first in np.lexsort((-self.scores, is_cut)):
            if not is_free[first]:
                continue
            is_free[first] = False
            group, pending = [first], [first]
            while pending:
                one = pending.pop()
                for other in self._near(one, is_free):
                    if self._same(one, other, is_cut):
                        is_free[other] = False
                        group.append(other)
                        if is_cut[first]:  # through whose other border it may go on
                            pending.append(other)
            yield group

    def _near(self, index: int, is_free: NDArray[np.bool_]) -> list[int]:
        """Return the free objects of the same class in other tiles whose boxes overlap that of one."""
        box = self.boxes[index]
        overlaps = (self.boxes[:, :2] < box[2:]).all(1) & (self.boxes[:, 2:] > box[:2]).all(1)
        is_other = (self.places != self.places[index]) & (self.labels == self.labels[index])
        return np.flatnonzero(is_free & overlaps & is_other).tolist()

    def _same(self, one: int, other: int, is_cut: NDArray[np.bool_]) -> bool:
        """Tell whether two views agree where their tiles overlap, or one is a piece of the other."""
        tiles = [self.tiles[self.places[index]] for index in (one, other)]
        common = intersection(*tiles)
        inside = [self._area(index, common) for index in (one, other)]
        shared = self._shared(one, other)
        if shared >= SAME * (sum(inside) - shared) > 0:
            return True
        return bool(is_cut[[one, other]].any()) and shared >= SAME * min(inside) > 0

    def _area(self, index: int, where: Tile) -> float:
        """Return how many pixels of an object are in a rectangle."""
        if self.crops is None:
            return area(intersection(self.boxes[index], where))
        return float(part_of(self.crops[index], intersection(self.crops[index].box, where)).sum())

    def _shared(self, one: int, other: int) -> float:
        """Return how many pixels two objects share."""
        if self.crops is None:
            return area(intersection(self.boxes[one], self.boxes[other]))
        first, second = self.crops[one], self.crops[other]
        where = intersection(first.box, second.box)
        return float((part_of(first, where) & part_of(second, where)).sum())


def intersection(one: Any, other: Any) -> Tile:
    """Return the rectangle that two share; one without area if there is none."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    return Tile(left, top, max(left, min(one[2], other[2])), max(top, min(one[3], other[3])))


def area(where: Tile) -> float:
    return float(where.right - where.left) * float(where.bottom - where.top)


def part_of(crop: Crop, where: Tile) -> NDArray[np.bool_]:
    """Return the pixels of a mask in a rectangle within its crop."""
    rows = slice(where.top - crop.top, where.bottom - crop.top)
    return crop.mask[rows, where.left - crop.left : where.right - crop.left]


def joined(crops: list[Crop]) -> Crop:
    """Return a mask with the pixels of all."""
    filled = [crop for crop in crops if crop.mask.size]
    if len(filled) < 2:
        return filled[0] if filled else crops[0]
    corners = np.array([crop.box for crop in filled])
    left, top = corners[:, :2].min(0).tolist()
    width, height = (corners[:, 2:].max(0) - (left, top)).tolist()
    whole = Crop(np.zeros((height, width), np.bool_), left, top)
    for crop in filled:
        part_of(whole, Tile(*crop.box))[...] |= crop.mask
    return whole
