"""Checks of the masks in an annotation file, polygons and run lengths (RLE).

pycocotools needs them: it hangs on polygons with NaN or huge numbers, and decodes an RLE that does not fill its size
into whatever the memory held.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .annotation_file import LARGEST_SIDE, Use
from .findings import Fault, Finding, short

MOST_COMPARED, SMALLEST_OVERLAP = 1000, 0.1
LONGEST_COUNT = 7  # characters of one count in a compressed RLE, of 5 bits each


def mask_faults(annotation: Mapping[str, Any], size: tuple[int, int] | None, use: Use) -> Iterator[Fault]:
    """Yield what is wrong with the mask of an annotation; ``size`` is its image's width and height, if known."""
    mask = annotation.get('segmentation')
    if not mask:
        if not annotation.get('ignore'):
            yield Fault('mask_missing', 'has no segmentation, which the config uses')
    elif type(mask) is list:
        parts: dict[str, list[int]] = {}
        texts: dict[str, str] = {}  # on the first of each kind
        for part, polygon in enumerate(mask):
            if fault := _polygon_fault(polygon, size):
                parts.setdefault(fault.kind, []).append(part)
                texts.setdefault(fault.kind, f'has the polygon {short(polygon)}, which {fault.text}')
        yield from (Fault(kind, texts[kind], tuple(numbers)) for kind, numbers in parts.items())
    elif type(mask) is dict:
        if fault := _rle_fault(mask, size):
            yield fault
        if use.polygons_only and not annotation.get('iscrowd'):
            yield Fault('rle_unused', 'has an RLE, which poly2mask=False passes over')
    else:
        yield Fault('mask_invalid', f'has the segmentation {short(mask)}')


def _polygon_fault(polygon: Any, size: tuple[int, int] | None) -> Fault | None:
    """Return the kind of a polygon's fault and a text, or None."""
    if type(polygon) is not list or len(polygon) % 2:
        return Fault('polygon_invalid', 'is no list of x, y, x, y, ...')
    if len(polygon) < 6:
        return Fault('polygon_short', 'has less than three points')
    try:
        # the sum, which is quicker, is finite only if all are; it may overflow where all are finite
        if not math.isfinite(sum(polygon)) and not all(map(math.isfinite, polygon)):
            return Fault('polygon_invalid', 'holds numbers that are not finite')
    except (TypeError, OverflowError):
        return Fault('polygon_invalid', 'holds what is no number')
    width, height = size or (LARGEST_SIDE, LARGEST_SIDE)
    if min(polygon) >= 0 and max(polygon) <= 2 * min(width, height):
        return None
    for side, numbers in ((width, polygon[::2]), (height, polygon[1::2])):
        if min(numbers) < -side or max(numbers) > 2 * side:
            return Fault('polygon_far', 'reaches further out of the image than that is large')
    return None


def _rle_fault(mask: Mapping[str, Any], size: tuple[int, int] | None) -> Fault | None:
    """Return the kind of an RLE's fault and a text, or None."""
    own_size = mask.get('size')
    if type(own_size) is not list or len(own_size) != 2 or any(type(n) is not int or n <= 0 for n in own_size):
        return Fault('rle_invalid', f'has an RLE of size {short(own_size)}')
    height, width = own_size
    counts = counts_of_rle(mask.get('counts'))
    if counts is None:
        return Fault('rle_invalid', f'has the RLE counts {short(mask.get("counts"))}')
    if counts.sum() != height * width:
        return Fault('rle_invalid', f'has an RLE of {counts.sum()} pixels for {height} x {width}')
    if size is not None and (width, height) != size:
        return Fault('rle_size', f'has an RLE of {width} x {height} pixels, but its image has {size[0]} x {size[1]}')
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


def check_masks_lie_in_boxes(content: Mapping[str, Any], path: Path) -> Iterator[Finding]:
    """Compare some polygons with the boxes of their objects, in content without errors: both must be in pixels."""
    with_polygons = [
        entry
        for entry in content['annotations']
        if type(entry.get('segmentation')) is list and entry['segmentation'] and not entry.get('iscrowd')
    ]
    compared = with_polygons[:: max(1, len(with_polygons) // MOST_COMPARED)]
    apart = [entry for entry in compared if _overlap(entry['segmentation'], entry['bbox']) < SMALLEST_OVERLAP]
    if len(apart) > max(1, len(compared) // 2):
        numbers = [number for entry in apart for polygon in entry['segmentation'] for number in polygon]
        hint = ': the polygons seem to be fractions of the width and the height' if max(numbers) <= 1 else ''
        yield Finding(
            'mask_layout',
            f'{path}: the polygons of {len(apart)} of {len(compared)} objects lie outside their boxes{hint}',
        )


def _overlap(polygons: Sequence[Sequence[float]], box: Sequence[float]) -> float:
    """Return the intersection over union of a box and the box around polygons."""
    x, y, width, height = box
    xs = [number for polygon in polygons for number in polygon[::2]]
    ys = [number for polygon in polygons for number in polygon[1::2]]
    left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    common = max(0, min(right, x + width) - max(left, x)) * max(0, min(bottom, y + height) - max(top, y))
    union = width * height + (right - left) * (bottom - top) - common
    return common / union if union > 0 else 1
