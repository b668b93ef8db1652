"""Checks of annotations: ids, references, boxes and areas; some that are listed twice; boxes of another convention."""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .annotation_file import LARGEST_SIDE, Use, entries_by_id, image_sizes, is_hashable, is_id
from .findings import Fault, Finding, short
from .mask_checks import mask_faults

Annotation = Mapping[str, Any]
MOST_OVERHANG = 1.0  # pixels that a box may reach out of its image: annotation tools round
SHARE = 0.25  # of all boxes that reach beyond their images at least, before another convention is thought of
FAR = 0.1  # beyond the image, as a share of its side
TOLERANCE = 0.01  # the same, which is no more than careless


def check_annotations(content: Mapping[str, Any], use: Use) -> Iterator[Finding]:
    """Look at every annotation by itself, and for those that are listed twice."""
    sizes = image_sizes(content)
    images, categories = entries_by_id(content['images']), entries_by_id(content['categories'])
    ids: set[Any] = set()
    with_box: dict[int, Annotation] = {}
    for index, annotation in enumerate(content['annotations']):
        if type(annotation) is not dict:
            message = f'annotation {index} is {short(annotation)}, no JSON object'
            yield Finding('annotation_invalid', message, 'annotations', index)
            continue
        image_id = annotation.get('image_id')
        size = sizes.get(image_id) if is_hashable(image_id) else None
        faults = [_id_fault(annotation, ids, use), _crowd_fault(annotation, use)]
        faults += _reference_faults(annotation, images, categories)
        if _is_box(annotation.get('bbox')):
            with_box[index] = annotation
            faults += _box_faults(annotation, size)
        else:
            faults.append(Fault('box_invalid', f'has the box {short(annotation.get("bbox"))}'))
        if use.masks:
            faults += mask_faults(annotation, size, use)
        yield from (fault.found_in(annotation, index) for fault in faults if fault is not None)
    yield from _check_duplicates(with_box)


def _id_fault(annotation: Annotation, seen: set[Any], use: Use) -> Fault | None:
    annotation_id = annotation.get('id')
    # the evaluator writes ids into an array of numbers
    if not (is_id(annotation_id) or (type(annotation_id) is str and not use.evaluated)):
        return Fault('annotation_id_invalid', 'has no usable id')
    if annotation_id in seen:
        return Fault('annotation_id_duplicate', 'is not the only one with this id')
    seen.add(annotation_id)
    if use.evaluated and annotation_id == 0:
        return Fault('annotation_id_zero', 'would never count as found')
    return None


def _reference_faults(annotation: Annotation, images: Container[Any], categories: Container[Any]) -> Iterator[Fault]:
    image_id, category_id = annotation.get('image_id'), annotation.get('category_id')
    if not is_hashable(image_id) or image_id not in images:
        yield Fault('image_unknown', 'is of an image that the file does not list')
    if not is_hashable(category_id) or category_id not in categories:
        yield Fault('category_unknown', f'has the category {short(category_id)}, which the file does not list')


def _crowd_fault(annotation: Annotation, use: Use) -> Fault | None:
    if type(annotation.get('ignore')) is str:  # '0' would count as true
        return Fault('crowd_invalid', f'has ignore={short(annotation["ignore"])}')
    if 'iscrowd' not in annotation:
        return Fault('crowd_missing', 'has no iscrowd, which the evaluator needs') if use.evaluated else None
    crowd = annotation['iscrowd']
    if type(crowd) in (int, float, bool) and crowd in (0, 1):
        return None
    return Fault('crowd_invalid', f'has iscrowd={short(crowd)}')


def _is_box(value: Any) -> bool:
    """Tell whether a value is a list of four finite numbers."""
    try:
        return type(value) is list and len(value) == 4 and all(map(math.isfinite, value)) and math.isfinite(sum(value))
    except (TypeError, OverflowError):  # an entry is no number, or beyond what a float holds
        return False


def _box_faults(annotation: Annotation, size: tuple[int, int] | None) -> Iterator[Fault]:
    """Look at a valid box, x, y, width, height in pixels, and at the area."""
    left, top, width, height = annotation['bbox']
    right, bottom = left + width, top + height
    image_width, image_height = size or (math.inf, math.inf)
    is_empty = width <= 0 or height <= 0
    has_area = not is_empty and right > 0 and bottom > 0 and left < image_width and top < image_height
    overhang = max(-left, -top, right - image_width, bottom - image_height)
    if is_empty:
        yield _box_fault(annotation, 'box_empty', 'has no area')
    elif not has_area:
        yield _box_fault(annotation, 'box_outside', 'is outside the image', size)
    elif overhang > MOST_OVERHANG:
        kind = 'box_overhanging' if overhang < LARGEST_SIDE else 'box_invalid'  # numbers that torch cannot take
        yield _box_fault(annotation, kind, 'reaches out of the image', size)
    if has_area and (width < 1 or height < 1):
        yield _box_fault(annotation, 'box_thin', 'is narrower than a pixel')
    area: Any = annotation.get('area')
    if type(area) not in (int, float) or not abs(area) < 1e300:  # NaN is not smaller either
        yield Fault('area_invalid', f'has the area {short(area)}')
    elif area <= 0 and has_area:
        yield Fault('area_not_positive', f'has the area {short(area)}')


def _box_fault(annotation: Annotation, kind: str, text: str, size: tuple[int, int] | None = None) -> Fault:
    of_image = f' of {size[0]} x {size[1]} pixels' if size else ''
    return Fault(kind, f'has the box {short(annotation["bbox"])}, which {text}{of_image}')


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
            others = repr([annotation.get(key) for key in ('segmentation', 'iscrowd', 'ignore')])
            if others in seen:
                text = f'is the same as annotation {short(seen[others])}'
                yield Fault('annotation_duplicate', text).found_in(annotation, index)
            else:
                seen[others] = annotation.get('id')


def check_box_layout(content: Mapping[str, Any], findings: Sequence[Finding], path: Path) -> Iterator[Finding]:
    """Look whether boxes that reach far beyond images all lie within them by another convention than COCO's.

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
