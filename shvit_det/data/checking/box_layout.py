"""Boxes that a program wrote by another convention than COCO's [x, y, width, height] in pixels."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .annotation_file import annotations_of, image_sizes
from .findings import Finding

SHARE = 0.25  # of all boxes that reach beyond their images at least, before another convention is thought of
FAR = 0.1  # beyond the image, as a share of its side
TOLERANCE = 0.01  # the same, which is no more than careless


def check_box_layout(content: Mapping[str, Any], findings: Sequence[Finding], path: Path) -> Iterator[Finding]:
    """Look whether boxes that reach far beyond their images all lie within them by another convention.

    Args:
        content: The content of an annotation file without errors.
        findings: What was found in it.
        path: The file, for messages.
    """
    overhanging = [finding for finding in findings if finding.kind == 'box_overhanging']
    if len(overhanging) < max(2, SHARE * len(content['annotations'])):
        return
    x, y, width, height = _boxes_in_images(content)
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
    boxes = [entry['bbox'] for entry in annotations_of(content).values()]
    return bool(boxes) and all(0 <= number <= 1 for box in boxes for number in box)


def _boxes_in_images(content: Mapping[str, Any]) -> np.ndarray:
    """Return the four numbers of each box (4, N), as shares of the sides of its image."""
    sizes = image_sizes(content)
    entries = [entry for entry in annotations_of(content).values() if entry['image_id'] in sizes]
    boxes = np.array([entry['bbox'] for entry in entries], float).reshape(-1, 4)
    sides = np.array([sizes[entry['image_id']] for entry in entries], float).reshape(-1, 2)
    return (boxes / np.concatenate([sides, sides], axis=1)).T
