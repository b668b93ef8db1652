"""Boxes that a program wrote by another convention than COCO's [x, y, width, height] in pixels."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .annotation_file import image_sizes
from .findings import Finding

SHARE = 0.25  # of all boxes that reach beyond their images at least, before another convention is thought of
FAR = 0.1  # beyond the image, as a share of its side
TOLERANCE = 0.01  # the same, which is no more than careless


def check_box_layout(content: Mapping[str, Any], findings: Sequence[Finding], path: Path) -> Iterator[Finding]:
    """Look whether boxes that reach far beyond their images all lie within them by another convention.

    ``findings`` is what was found before in the content, none of it an error.
    """
    overhanging = [finding for finding in findings if finding.kind == 'box_overhanging']
    if len(overhanging) < max(2, SHARE * len(content['annotations'])):
        return
    sizes = image_sizes(content)
    boxes = np.array([entry['bbox'] for entry in content['annotations']], float)
    sides = np.array([sizes[entry['image_id']] for entry in content['annotations']], float)
    x, y, width, height = (boxes / np.tile(sides, 2)).T  # as shares of the sides of the images
    far = np.count_nonzero((x + width > 1 + FAR) | (y + height > 1 + FAR))
    if far < SHARE * len(x):
        return
    others = {
        '[x1, y1, x2, y2]': (x, y, width, height),
        '[centre x, centre y, width, height]': (x - width / 2, y - height / 2, x + width / 2, y + height / 2),
    }
    for layout, (left, top, right, bottom) in others.items():
        ordered = (left < right) & (top < bottom)
        within = (np.minimum(left, top) > -TOLERANCE) & (np.maximum(right, bottom) < 1 + TOLERANCE)
        if np.all(ordered & within):
            yield Finding(
                'box_layout',
                f'{far} of the {len(x)} boxes of {path} reach far beyond their images as [x, y, width, height], which '
                f'COCO has, and all are within them as {layout}: convert them',
            )
            return


def are_fractions(content: Mapping[str, Any]) -> bool:
    """Tell whether all boxes may be fractions of the image's width and height."""
    return all(0 <= number <= 1 for entry in content['annotations'] for number in entry['bbox'])
