"""Counts of a data set: objects per class and image, sizes, aspect ratios, positions, images without objects."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRID = 16  # rows and columns into which images are divided, to count where objects are
OBJECT_BINS = {'none': 0, '1': 1, '2': 2, '3 to 5': 3, '6 to 10': 6, '11 to 20': 11, '21 to 50': 21, 'over 50': 51}
SIDE_BINS = (0, 8, 16, 32, 64, 96, 128, 256, 512)  # pixels
RATIO_BINS = {'1:4 and narrower': 0, '1:4 to 1:2': 1 / 4, '1:2 to 1:1': 1 / 2, '1:1 to 2:1': 1, '2:1 to 4:1': 2,
              '4:1 and wider': 4}  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """What a data set holds.

    Attributes:
        num_images: Images.
        num_ignored: Objects that are not trained on or scored, such as crowds; they count nowhere else.
        per_image: The number of objects of each image.
        label: The class of each object.
        width, height: Of each object's box, in pixels.
        positions: How many objects have their centre in each cell of a grid over their image.
        image_sizes: Width and height of each image, in pixels.

    Shapes:
        ``per_image`` (I,), ``label``, ``width``, ``height`` (N,), ``positions`` (16, 16), ``image_sizes`` (I, 2)
    """

    num_images: int
    num_ignored: int
    per_image: NDArray[Any]
    label: NDArray[Any]
    width: NDArray[Any]
    height: NDArray[Any]
    positions: NDArray[Any]
    image_sizes: NDArray[Any]

    @property
    def num_empty(self) -> int:
        """How many images have no object."""
        return int((self.per_image == 0).sum())

    @property
    def side(self) -> NDArray[Any]:
        """Of each object, the side of a square as large as its box, in pixels."""
        return np.sqrt(self.width * self.height)


def statistics(infos: Iterable[Mapping[str, Any]]) -> Statistics:
    """Return the statistics of what mmdet's data sets load.

    Args:
        infos: For each image ``width``, ``height`` and ``instances``: ``bbox`` (left, top, right, bottom in pixels),
            ``bbox_label`` and ``ignore_flag``.
    """
    per_image, labels, boxes, sizes, ignored = [], [], [], [], 0
    positions = np.zeros((GRID, GRID), int)
    for info in infos:
        objects = [each for each in info['instances'] if not each.get('ignore_flag')]
        ignored += len(info['instances']) - len(objects)
        per_image.append(len(objects))
        size = (info['width'], info['height'])
        sizes.append(size)
        for each in objects:
            left, top, right, bottom = each['bbox']
            labels.append(each['bbox_label'])
            boxes.append((right - left, bottom - top))
            centre = ((left + right) / 2 / size[0], (top + bottom) / 2 / size[1])
            column, row = (min(max(int(GRID * place), 0), GRID - 1) for place in centre)
            positions[row, column] += 1
    sides = np.array(boxes, float).reshape(-1, 2)
    return Statistics(
        len(per_image),
        ignored,
        np.array(per_image, int),
        np.array(labels, int),
        sides[:, 0],
        sides[:, 1],
        positions,
        np.array(sizes, int).reshape(-1, 2),
    )


def counts(values: NDArray[Any], starts: Sequence[float]) -> list[int]:
    """Return how many values lie in each bin, from its start to that of the next; the last has no end."""
    places = np.searchsorted(np.asarray(starts), values, side='right') - 1
    return np.bincount(places.clip(0), minlength=len(starts)).tolist()


def side_names() -> list[str]:
    """Return the names of the bins of sizes."""
    inner = [f'{low} to {high}' for low, high in itertools.pairwise(SIDE_BINS)]
    return [*inner, f'{SIDE_BINS[-1]} and more']
