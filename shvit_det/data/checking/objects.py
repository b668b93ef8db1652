"""Checks of annotations: ids, what they refer to, boxes, areas. Columns of numbers at once, as COCO has 860 000."""

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .findings import Finding, short
from .tables import is_id, size_of

Annotation = Mapping[str, Any]
OVERHANG = 1.0  # pixels that a box may reach out of its image: annotation tools round


@dataclass(frozen=True)
class Use:
    """What a config does with an annotation file, as far as it decides what is a fault.

    Attributes:
        masks: Masks are loaded or scored.
        polygons_only: RLE is passed over (``poly2mask=False``).
        evaluated: The evaluator reads the file too.
    """

    masks: bool = False
    polygons_only: bool = False
    evaluated: bool = False

    def __or__(self, other: 'Use') -> 'Use':
        return Use(
            self.masks or other.masks, self.polygons_only or other.polygons_only, self.evaluated or other.evaluated
        )


def finding(kind: str, index: int, annotation: Annotation, text: str, part: int | None = None) -> Finding:
    """Make a finding about one annotation; ``text`` goes on after its name."""
    annotation_id, image_id = annotation.get('id'), annotation.get('image_id')
    message = f'annotation {short(annotation_id)} of image {short(image_id)} {text}'
    return Finding(kind, message, 'annotations', index, image_id, annotation_id, part)


def check_annotations(content: Mapping[str, Any], use: Use) -> Iterator[Finding]:
    """Look at the entries of the list of annotations, all but their masks."""
    entries = content['annotations']
    for index, entry in enumerate(entries):
        if type(entry) is not dict:
            message = f'annotation {index} is {short(entry)}, no JSON object'
            yield Finding('annotation_invalid', message, 'annotations', index)
    annotations = objects_of(content)
    yield from _check_ids(annotations, use)
    yield from _check_references(content, annotations)
    yield from _check_crowds(annotations, use)
    boxes = array('d')
    boxed = {}
    for index, annotation in annotations.items():
        box = annotation.get('bbox')
        if _append(boxes, box, 4):
            boxed[index] = annotation
        else:
            yield finding('box_invalid', index, annotation, f'has the box {short(box)}')
    yield from _check_boxes(boxed, np.frombuffer(boxes).reshape(-1, 4), image_sizes(content))
    yield from _check_duplicates(boxed)


def objects_of(content: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the annotations that are JSON objects by their place in the list."""
    return {index: entry for index, entry in enumerate(content['annotations']) if type(entry) is dict}


def image_sizes(content: Mapping[str, Any]) -> dict[Any, tuple[int, int]]:
    """Return width and height, in pixels, by image id, where both are usable."""
    sized = ((image, size_of(image)) for image in content['images'] if type(image) is dict)
    return {image['id']: size for image, size in sized if size is not None and is_hashable(image.get('id'))}


def is_hashable(value: Any) -> bool:
    """Tell whether a value from JSON could be an id that something is looked up by."""
    return type(value) in (int, str, float)


def _append(column: 'array[float]', values: Any, length: int | None = None) -> bool:
    """Add a list of finite numbers to a column; False, and nothing added, if it is something else."""
    if type(values) is not list or (length is not None and len(values) != length):
        return False
    try:
        if not math.isfinite(sum(values)):
            return False
        column.fromlist(values)
    except (TypeError, OverflowError, ValueError):  # an entry is no number, or beyond what a float holds
        return False
    return True


def _check_ids(annotations: Mapping[int, Annotation], use: Use) -> Iterator[Finding]:
    seen: set[Any] = set()
    for index, annotation in annotations.items():
        annotation_id = annotation.get('id')
        # the evaluator writes ids into an array of numbers
        if not (is_id(annotation_id) or (type(annotation_id) is str and not use.evaluated)):
            yield finding('annotation_id_invalid', index, annotation, 'has no usable id')
        elif annotation_id in seen:
            yield finding('annotation_id_duplicate', index, annotation, 'is not the only one with this id')
        else:
            seen.add(annotation_id)
            if use.evaluated and annotation_id == 0:
                yield finding('annotation_id_zero', index, annotation, 'would never count as found')


def _check_references(content: Mapping[str, Any], annotations: Mapping[int, Annotation]) -> Iterator[Finding]:
    images, categories = (
        {entry['id'] for entry in content[section] if type(entry) is dict and is_hashable(entry.get('id'))}
        for section in ('images', 'categories')
    )
    for index, annotation in annotations.items():
        image_id, category_id = annotation.get('image_id'), annotation.get('category_id')
        if not is_hashable(image_id) or image_id not in images:
            yield finding('image_unknown', index, annotation, 'is of an image that the file does not list')
        if not is_hashable(category_id) or category_id not in categories:
            text = f'has the category {short(category_id)}, which the file does not list'
            yield finding('category_unknown', index, annotation, text)


def _check_crowds(annotations: Mapping[int, Annotation], use: Use) -> Iterator[Finding]:
    for index, annotation in annotations.items():
        if 'iscrowd' not in annotation:
            if use.evaluated:
                yield finding('crowd_missing', index, annotation, 'has no iscrowd, which the evaluator needs')
        elif not (type(crowd := annotation['iscrowd']) in (int, float, bool) and crowd in (0, 1)):
            yield finding('crowd_invalid', index, annotation, f'has iscrowd={short(crowd)}')


def is_area(value: Any) -> bool:
    """Tell whether a value is a finite number."""
    return type(value) in (int, float) and abs(value) < 1e300


def _check_boxes(
    annotations: Mapping[int, Annotation], boxes: NDArray[np.float64], sizes: Mapping[Any, tuple[int, int]]
) -> Iterator[Finding]:
    """Look at boxes, (N, 4) as x, y, width, height in pixels, and at areas."""
    indices = list(annotations)
    sides = sides_of(annotations.values(), sizes)
    with np.errstate(over='ignore', invalid='ignore'):
        ends = boxes[:, :2] + boxes[:, 2:]
        empty: Any = (boxes[:, 2:] <= 0).any(axis=1)
        outside: Any = ~empty & ((ends <= 0) | (boxes[:, :2] >= sides)).any(axis=1)
        overhanging = ~empty & ~outside & ((boxes[:, :2] < -OVERHANG) | (ends > sides + OVERHANG)).any(axis=1)
        thin = ~empty & ~outside & (boxes[:, 2:] < 1).any(axis=1)
    for kind, found, text in (
        ('box_empty', empty, 'has no area'),
        ('box_outside', outside, 'is outside the image'),
        ('box_overhanging', overhanging, 'reaches out of the image'),
        ('box_thin', thin, 'is narrower than a pixel'),
    ):
        for row in np.flatnonzero(found).tolist():
            annotation = annotations[indices[row]]
            size = sizes.get(annotation.get('image_id')) if is_hashable(annotation.get('image_id')) else None
            where = f' of {size[0]} x {size[1]} pixels' if size and kind in ('box_outside', 'box_overhanging') else ''
            words = f'has the box {short(annotation["bbox"])}, which {text}{where}'
            yield finding(kind, indices[row], annotation, words)
    for row, (index, annotation) in enumerate(annotations.items()):
        area: Any = annotation.get('area')
        if not is_area(area):
            yield finding('area_invalid', index, annotation, f'has the area {short(area)}')
        elif area <= 0 and not empty[row] and not outside[row]:
            yield finding('area_not_positive', index, annotation, f'has the area {short(area)}')


def sides_of(annotations: Sequence[Annotation] | Any, sizes: Mapping[Any, tuple[int, int]]) -> NDArray[np.float64]:
    """Return width and height of the image of each annotation, NaN where they are not known. Shapes: (N, 2)."""
    unknown = (np.nan, np.nan)
    ids = [annotation.get('image_id') for annotation in annotations]
    found = [sizes.get(image_id, unknown) if is_hashable(image_id) else unknown for image_id in ids]
    return np.array(found, np.float64).reshape(-1, 2)


def _check_duplicates(annotations: Mapping[int, Annotation]) -> Iterator[Finding]:
    first: dict[Any, int] = {}
    groups: dict[Any, list[int]] = {}
    for index, annotation in annotations.items():
        image_id, category_id = annotation.get('image_id'), annotation.get('category_id')
        if is_hashable(image_id) and is_hashable(category_id):
            key = (image_id, category_id, *annotation['bbox'])
            if first.setdefault(key, index) != index:
                groups.setdefault(key, [first[key]]).append(index)
    for group in groups.values():  # objects may share a box and differ in their masks
        seen: dict[str, Any] = {}
        for index in group:
            annotation = annotations[index]
            rest = repr([annotation.get(key) for key in ('segmentation', 'iscrowd', 'ignore')])
            if rest in seen:
                text = f'is the same as annotation {short(seen[rest])}'
                yield finding('annotation_duplicate', index, annotation, text)
            else:
                seen[rest] = annotation.get('id')
