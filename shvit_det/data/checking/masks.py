"""Checks of masks. pycocotools does not return from polygons with NaN or huge numbers, and decodes an RLE that does not
fill its size into whatever the memory held."""

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .findings import Finding, short
from .objects import Annotation, Use, finding, image_sizes, is_hashable, objects_of, sides_of
from .tables import LARGEST_SIDE

NUMBERS_AT_ONCE = 2**20  # coordinates in one array
LONGEST_GROUP = 7  # characters of one count in a compressed RLE: 5 bits each


def check_masks(content: Mapping[str, Any], use: Use) -> Iterator[Finding]:
    """Look at polygons and run lengths of all annotations."""
    sizes = image_sizes(content)
    polygons = _Polygons(sizes)
    for index, annotation in objects_of(content).items():
        mask = annotation.get('segmentation')
        if not mask:
            if not annotation.get('ignore'):
                yield finding('mask_missing', index, annotation, 'has no segmentation, which the config uses')
        elif type(mask) is list:
            for part, polygon in enumerate(mask):
                yield from polygons.add(index, annotation, part, polygon)
            if polygons.full:
                yield from polygons.finish()
        elif type(mask) is dict:
            yield from _check_rle(index, annotation, mask, sizes)
            if use.polygons_only and not annotation.get('iscrowd'):
                yield finding('rle_unused', index, annotation, 'has an RLE, which poly2mask=False passes over')
        else:
            yield finding('mask_invalid', index, annotation, f'has the segmentation {short(mask)}')
    yield from polygons.finish()


class _Polygons:
    """Collects the coordinates of polygons until there are enough to compare them all at once."""

    def __init__(self, sizes: Mapping[Any, tuple[int, int]]) -> None:
        self.sizes = sizes
        self.clear()

    def clear(self) -> None:
        self.numbers = array('d')
        self.starts: list[int] = []  # in points
        self.owners: list[tuple[int, Annotation, int]] = []

    @property
    def full(self) -> bool:
        return len(self.numbers) > NUMBERS_AT_ONCE

    def add(self, index: int, annotation: Annotation, part: int, polygon: Any) -> Iterator[Finding]:
        """Take a polygon in, or say at once why not."""
        if type(polygon) is not list or len(polygon) % 2:
            yield _about_polygon('polygon_invalid', index, annotation, part, polygon, 'is no list of x, y, x, y, ...')
        elif len(polygon) < 6:
            yield _about_polygon('polygon_short', index, annotation, part, polygon, 'has less than three points')
        else:
            start = len(self.numbers) // 2
            try:
                self.numbers.fromlist(polygon)
            except (TypeError, OverflowError):
                yield _about_polygon('polygon_invalid', index, annotation, part, polygon, 'holds what is no number')
                return
            self.starts.append(start)
            self.owners.append((index, annotation, part))

    def finish(self) -> Iterator[Finding]:
        """Compare what was taken in with the images, and start anew."""
        if self.owners:
            points = np.frombuffer(self.numbers).reshape(-1, 2)
            low, high = (ends.reduceat(points, self.starts) for ends in (np.minimum, np.maximum))
            sides = sides_of([annotation for _, annotation, _ in self.owners], self.sizes)
            sides[np.isnan(sides)] = LARGEST_SIDE
            finite = (np.isfinite(low) & np.isfinite(high)).all(axis=1)
            far = finite & ((low < -sides) | (high > 2 * sides)).any(axis=1)
            for kind, found, text in (
                ('polygon_invalid', ~finite, 'holds numbers that are not finite'),
                ('polygon_far', far, 'reaches further out of the image than that is large'),
            ):
                for row in np.flatnonzero(found).tolist():
                    index, annotation, part = self.owners[row]
                    polygon = annotation['segmentation'][part]
                    yield _about_polygon(kind, index, annotation, part, polygon, text)
        self.clear()


def _about_polygon(kind: str, index: int, annotation: Annotation, part: int, polygon: Any, text: str) -> Finding:
    return finding(kind, index, annotation, f'has the polygon {short(polygon)}, which {text}', part)


def _check_rle(
    index: int, annotation: Annotation, mask: Mapping[str, Any], sizes: Mapping[Any, tuple[int, int]]
) -> Iterator[Finding]:
    size = mask.get('size')
    if type(size) is not list or len(size) != 2 or any(type(side) is not int or side <= 0 for side in size):
        yield finding('rle_invalid', index, annotation, f'has an RLE of size {short(size)}')
        return
    height, width = size
    counts = counts_of_rle(mask.get('counts'))
    if counts is None:
        yield finding('rle_invalid', index, annotation, f'has the RLE counts {short(mask.get("counts"))}')
        return
    if counts.sum() != height * width:
        text = f'has an RLE of {counts.sum()} pixels for {height} x {width}'
        yield finding('rle_invalid', index, annotation, text)
        return
    image_id = annotation.get('image_id')
    expected = sizes.get(image_id) if is_hashable(image_id) else None
    if expected is not None and (width, height) != expected:
        text = f'has an RLE of {width} x {height} pixels, but its image has {expected[0]} x {expected[1]}'
        yield finding('rle_size', index, annotation, text)


def counts_of_rle(counts: Any) -> NDArray[np.int64] | None:
    """Return the run lengths of an RLE, compressed or not, or None if they are none.

    Compressed, a count is a number in groups of 5 bits, the lowest first, each a character from '0' on; from the fourth
    on it is the difference to the count before the last.
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
    if lengths.max() > LONGEST_GROUP:
        return None
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * places), starts)
    values -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return values if values.min() >= 0 else None
