"""Checks of the masks in an annotation file, polygons and run lengths (RLE).

pycocotools needs them: it hangs on polygons with NaN or huge numbers, and decodes an RLE that does not fill its size
into whatever the memory held.
"""

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .annotation_file import LARGEST_SIDE, Use, annotations_of, image_sizes, is_hashable
from .findings import Finding, about_annotation, short

COORDINATES_AT_ONCE = 2**20
LONGEST_COUNT = 7  # characters of one count in a compressed RLE, of 5 bits each


def check_masks(content: Mapping[str, Any], use: Use) -> Iterator[Finding]:
    """Look at the masks of all annotations."""
    sizes = image_sizes(content)
    coordinates: array[float] = array('d')
    owners: list[tuple[int, Mapping[str, Any], int, int]] = []  # index, annotation, part, first point in coordinates
    for index, annotation in annotations_of(content).items():
        mask = annotation.get('segmentation')
        if not mask:
            if not annotation.get('ignore'):
                yield about_annotation('mask_missing', index, annotation, 'has no segmentation, which the config uses')
        elif type(mask) is list:
            for part, polygon in enumerate(mask):
                start = len(coordinates) // 2
                if fault := _append_polygon(coordinates, polygon):
                    yield _about_polygon(*fault, index, annotation, part)
                else:
                    owners.append((index, annotation, part, start))
            if len(coordinates) > COORDINATES_AT_ONCE:
                yield from _check_extents(coordinates, owners, sizes)
                coordinates, owners = array('d'), []
        elif type(mask) is dict:
            if fault := _rle_fault(mask, annotation, sizes):
                yield about_annotation(fault[0], index, annotation, fault[1])
            if use.polygons_only and not annotation.get('iscrowd'):
                text = 'has an RLE, which poly2mask=False passes over'
                yield about_annotation('rle_unused', index, annotation, text)
        else:
            yield about_annotation('mask_invalid', index, annotation, f'has the segmentation {short(mask)}')
    yield from _check_extents(coordinates, owners, sizes)


def _append_polygon(coordinates: 'array[float]', polygon: Any) -> tuple[str, str] | None:
    """Add the coordinates of a polygon, or return the kind of its fault and a text."""
    if type(polygon) is not list or len(polygon) % 2:
        return 'polygon_invalid', 'is no list of x, y, x, y, ...'
    if len(polygon) < 6:
        return 'polygon_short', 'has less than three points'
    try:
        coordinates.fromlist(polygon)  # adds nothing when it fails
    except (TypeError, OverflowError):
        return 'polygon_invalid', 'holds what is no number'
    return None


def _check_extents(
    coordinates: 'array[float]',
    owners: list[tuple[int, Mapping[str, Any], int, int]],
    sizes: Mapping[Any, tuple[int, int]],
) -> Iterator[Finding]:
    """Compare where polygons reach with the sizes of their images, for many at once."""
    if not owners:
        return
    points = np.frombuffer(coordinates).reshape(-1, 2)
    starts = [start for *_, start in owners]
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    sides = sides_of([annotation for _, annotation, *_ in owners], sizes)
    sides[np.isnan(sides)] = LARGEST_SIDE
    finite = (np.isfinite(low) & np.isfinite(high)).all(axis=1)
    far = finite & ((low < -sides) | (high > 2 * sides)).any(axis=1)
    for kind, found, text in (
        ('polygon_invalid', ~finite, 'holds numbers that are not finite'),
        ('polygon_far', far, 'reaches further out of the image than that is large'),
    ):
        for row in np.flatnonzero(found).tolist():
            index, annotation, part, _ = owners[row]
            yield _about_polygon(kind, text, index, annotation, part)


def _about_polygon(kind: str, text: str, index: int, annotation: Mapping[str, Any], part: int) -> Finding:
    polygon = short(annotation['segmentation'][part])
    return about_annotation(kind, index, annotation, f'has the polygon {polygon}, which {text}', part)


def sides_of(annotations: Any, sizes: Mapping[Any, tuple[int, int]]) -> NDArray[np.float64]:
    """Return width and height of the image of each annotation, NaN where they are not known. Shapes: (N, 2)."""
    unknown = (np.nan, np.nan)
    ids = [annotation.get('image_id') for annotation in annotations]
    found = [sizes.get(image_id, unknown) if is_hashable(image_id) else unknown for image_id in ids]
    return np.array(found, np.float64).reshape(-1, 2)


def _rle_fault(
    mask: Mapping[str, Any], annotation: Mapping[str, Any], sizes: Mapping[Any, tuple[int, int]]
) -> tuple[str, str] | None:
    """Return the kind of an RLE's fault and a text, or None."""
    size = mask.get('size')
    if type(size) is not list or len(size) != 2 or any(type(side) is not int or side <= 0 for side in size):
        return 'rle_invalid', f'has an RLE of size {short(size)}'
    height, width = size
    counts = counts_of_rle(mask.get('counts'))
    if counts is None:
        return 'rle_invalid', f'has the RLE counts {short(mask.get("counts"))}'
    if counts.sum() != height * width:
        return 'rle_invalid', f'has an RLE of {counts.sum()} pixels for {height} x {width}'
    image_id = annotation.get('image_id')
    expected = sizes.get(image_id) if is_hashable(image_id) else None
    if expected is not None and (width, height) != expected:
        text = f'has an RLE of {width} x {height} pixels, but its image has {expected[0]} x {expected[1]}'
        return 'rle_size', text
    return None


def counts_of_rle(counts: Any) -> NDArray[np.int64] | None:
    """Return the run lengths of an RLE, compressed or not, or None if they are not valid.

    In the compressed form a count is a number in groups of 5 bits, the lowest first, each a character from '0' on. From
    the fourth count on it is the difference to the count before the last.
    """
    if type(counts) is list:
        if not all(type(count) is int and 0 <= count < 2**32 for count in counts):
            return None
        return np.array(counts, np.int64)
    if type(counts) is not str or not counts.isascii():
        return None
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 32) == 0)
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not len(ends) or ends[-1] != len(codes) - 1:
        return None
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > LONGEST_COUNT:
        return None
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * places), starts)
    values -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return values if values.min() >= 0 else None
