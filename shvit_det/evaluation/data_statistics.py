"""Counts of a data set: objects per class and image, sizes, aspect ratios, positions, images without objects."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRID = 16  # rows and columns into which images are divided, to count where objects are
# Names of bins with what they begin at
OBJECT_BINS = {'none': 0, '1': 1, '2': 2, '3 to 5': 3, '6 to 10': 6, '11 to 20': 11, '21 to 50': 21, 'over 50': 51}
SIDE_BINS = {'0 to 8': 0, '8 to 16': 8, '16 to 32': 16, '32 to 64': 32, '64 to 96': 64, '96 to 128': 96,
             '128 to 256': 128, '256 to 512': 256, '512 and more': 512}  # fmt: skip
RATIO_BINS = {'1:4 and narrower': 0, '1:4 to 1:2': 1 / 4, '1:2 to 1:1': 1 / 2, '1:1 to 2:1': 1, '2:1 to 4:1': 2,
              '4:1 and wider': 4}  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """What a data set of I images holds; N objects are counted."""

    num_ignored: int  # objects that are not trained on or scored, such as crowds; they count nowhere else
    per_image: NDArray[Any]  # (I,), the number of objects
    label: NDArray[Any]  # (N,), the class of each object
    side: NDArray[Any]  # (N,), of a square as large as the box of the object, in pixels
    ratio: NDArray[Any]  # (N,), of the width of the box to its height
    positions: NDArray[Any]  # (16, 16), how many objects have their centre in each cell of a grid over their image


def statistics(infos: Iterable[Mapping[str, Any]]) -> Statistics:
    """Return the statistics of what mmdet's data sets load.

    Args:
        infos: For each image ``width``, ``height`` and ``instances``: ``bbox`` (left, top, right, bottom in pixels),
            ``bbox_label`` and ``ignore_flag``.
    """
    per_image, labels, boxes, ignored = [], [], [], 0
    positions = np.zeros((GRID, GRID), int)
    for info in infos:
        objects = [each for each in info['instances'] if not each.get('ignore_flag')]
        ignored += len(info['instances']) - len(objects)
        per_image.append(len(objects))
        for each in objects:
            left, top, right, bottom = each['bbox']
            labels.append(each['bbox_label'])
            boxes.append((right - left, bottom - top))
            centre = ((left + right) / 2 / info['width'], (top + bottom) / 2 / info['height'])
            column, row = (min(max(int(GRID * place), 0), GRID - 1) for place in centre)
            positions[row, column] += 1
    width, height = np.array(boxes, float).reshape(-1, 2).T
    side, ratio = np.sqrt(width * height), width / height.clip(1e-6)
    return Statistics(ignored, np.array(per_image, int), np.array(labels, int), side, ratio, positions)


def counts(values: NDArray[Any], bins: Mapping[str, float]) -> dict[str, int]:
    """Return how many values lie in each bin, from its start to that of the next; the last has no end."""
    places = np.searchsorted(list(bins.values()), values, side='right') - 1
    return dict(zip(bins, np.bincount(places.clip(0), minlength=len(bins)).tolist(), strict=True))
