"""All checks of what an annotation file says: images, categories, ids, references, boxes, areas, masks.

They never raise on bad content, whatever JSON it is, and look at whole columns of numbers at once: COCO has 860 000
annotations.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.garbage_collection import collector_paused
from .annotation_file import Use, annotations_of, have_ids, image_sizes, is_file_name, is_hashable, is_id, size_of
from .findings import Finding, about_annotation, short
from .mask_checks import check_masks, sides_of

Annotation = Mapping[str, Any]
MOST_OVERHANG = 1.0  # pixels that a box may reach out of its image: annotation tools round


def check_content(
    content: Mapping[str, Any], use: Use, path: Path, classes: Sequence[str] | None = None
) -> list[Finding]:
    """Return everything that is wrong with the content of an annotation file.

    Args:
        content: The three lists, as :func:`~.annotation_file.read_annotations` returns them.
        use: What the config does with it.
        path: The file, for messages.
        classes: The classes of the config, or None where it states none.
    """
    with collector_paused():
        return [
            *check_file(content, path, classes),
            *_check_categories(content),
            *_check_image_entries(content),
            *_check_annotations(content, use),
            *(check_masks(content, use) if use.masks else ()),
        ]


def check_file(content: Mapping[str, Any], path: Path, classes: Sequence[str] | None) -> Iterator[Finding]:
    """Look at what concerns the whole file: whether it lists images, and the classes of the config."""
    if not content['images']:
        yield Finding('file', f'{path} lists no image')
    if classes is not None and (fault := _class_fault(content, classes, path)):
        yield Finding('classes', fault)


def _class_fault(content: Mapping[str, Any], classes: Sequence[str], path: Path) -> str | None:
    """Return how the classes of a config differ from the categories of an annotation file; None if they fit.

    mmdet numbers the categories in the order of the file and ignores those that it does not know: with no match it
    trains on nothing, with some missing or in another order it gives objects the names of others.
    """
    names = [category.get('name') for category in content['categories'] if type(category) is dict]
    in_file = list(dict.fromkeys(name for name in names if type(name) is str))
    missing = [name for name in classes if name not in in_file]
    if missing and len(missing) == len(classes):
        return (
            f'none of the classes of the config ({_first(classes)}) is a category of {path} ({_first(in_file)}): '
            f'set metainfo=dict(classes=...) of the datasets to the names in the file'
        )
    if missing:
        return (
            f'{len(missing)} of the {len(classes)} classes of the config are no category of {path} '
            f'({_first(missing)}): set metainfo=dict(classes=...) of the datasets to the names in the file'
        )
    ordered = [name for name in in_file if name in classes]
    if ordered != list(classes):
        return (
            f'the classes of the config are in another order ({_first(classes)}) than the categories of {path} '
            f'({_first(ordered)}), and labels would get the wrong names: use the order of the file'
        )
    return None


def _first(names: Sequence[str], count: int = 4) -> str:
    return ', '.join(names[:count]) + (', ...' if len(names) > count else '')


def _check_categories(content: Mapping[str, Any]) -> Iterator[Finding]:
    usable: dict[int, dict[str, Any]] = {}
    entries = content['categories']
    for index, (category, has_id) in enumerate(zip(entries, have_ids(entries), strict=True)):
        if has_id and type(category.get('name')) is str:
            usable[index] = category
        else:
            message = f'category {index} is {short(category)}: no id or no name'
            yield Finding('category_invalid', message, 'categories', index)
    names: dict[Any, set[str]] = {}
    for category in usable.values():
        names.setdefault(category['id'], set()).add(category['name'])
    seen_ids: set[Any] = set()
    first_id: dict[str, Any] = {}
    for index, category in usable.items():
        name, category_id = category['name'], category['id']
        if len(names[category_id]) > 1:
            both = ' and '.join(short(other) for other in sorted(names[category_id]))
            message = f'the categories {both} share the id {short(category_id)}'
            yield Finding('category_id_duplicate', message, 'categories', index)
        elif category_id in seen_ids:
            yield Finding('category_duplicate', f'category {short(name)} is listed twice', 'categories', index)
        elif name in first_id:
            message = f'the categories {short(first_id[name])} and {short(category_id)} share the name {short(name)}'
            yield Finding('category_name_duplicate', message, 'categories', index)
        else:
            first_id[name] = category_id
        seen_ids.add(category_id)


def _check_image_entries(content: Mapping[str, Any]) -> Iterator[Finding]:
    entries = content['images']
    usable: dict[int, dict[str, Any]] = {}
    for index, (image, has_id) in enumerate(zip(entries, have_ids(entries), strict=True)):
        if not has_id:
            yield Finding('image_invalid', f'image {index} is {short(image)}: no usable id', 'images', index)
            continue
        usable[index] = image
        image_id = image['id']
        if not is_file_name(image.get('file_name')):
            message = f'image {short(image_id)} has the file name {short(image.get("file_name"))}'
            yield Finding('image_invalid', message, 'images', index, image_id)
        elif size_of(image) is None:
            sides = f'{short(image.get("width"))} x {short(image.get("height"))}'
            message = f'image {short(image_id)}, {short(image["file_name"])}, has the width and height {sides}'
            yield Finding('image_size_invalid', message, 'images', index, image_id)
    yield from _check_repeated_ids(usable)
    first_id: dict[str, Any] = {}
    for index, image in usable.items():
        name = image.get('file_name')
        if is_file_name(name) and first_id.setdefault(name, image['id']) != image['id']:  # type: ignore[arg-type]
            message = f'{short(name)} is listed as image {short(first_id[name])} and as image {short(image["id"])}'  # type: ignore[index]
            yield Finding('image_name_duplicate', message, 'images', index, image['id'])


def _check_repeated_ids(images: Mapping[int, Mapping[str, Any]]) -> Iterator[Finding]:
    """Look for images that are listed twice, and for different ones that share an id."""
    counts = Counter(image['id'] for image in images.values())
    repeated = {index: image for index, image in images.items() if counts[image['id']] > 1}
    files: dict[Any, set[str]] = {}
    for image in repeated.values():
        files.setdefault(image['id'], set()).add(repr(image.get('file_name')))
    seen: set[Any] = set()
    for index, image in repeated.items():
        image_id = image['id']
        if len(files[image_id]) > 1:
            message = f'several images have the id {short(image_id)}, {short(image.get("file_name"))} is one of them'
            yield Finding('image_id_duplicate', message, 'images', index, image_id)
        elif image_id in seen:
            message = f'image {short(image_id)}, {short(image.get("file_name"))}, is listed twice'
            yield Finding('image_duplicate', message, 'images', index, image_id)
        seen.add(image_id)


def _check_annotations(content: Mapping[str, Any], use: Use) -> Iterator[Finding]:
    for index, entry in enumerate(content['annotations']):
        if type(entry) is not dict:
            message = f'annotation {index} is {short(entry)}, no JSON object'
            yield Finding('annotation_invalid', message, 'annotations', index)
    annotations = annotations_of(content)
    yield from _check_ids(annotations, use)
    yield from _check_references(content, annotations)
    yield from _check_crowds(annotations, use)
    boxes: array[float] = array('d')
    with_box = {}
    for index, annotation in annotations.items():
        if _append_box(boxes, annotation.get('bbox')):
            with_box[index] = annotation
        else:
            yield about_annotation('box_invalid', index, annotation, f'has the box {short(annotation.get("bbox"))}')
    yield from _check_boxes(with_box, np.frombuffer(boxes).reshape(-1, 4), image_sizes(content))
    yield from _check_duplicates(with_box)


def _check_ids(annotations: Mapping[int, Annotation], use: Use) -> Iterator[Finding]:
    seen: set[Any] = set()
    for index, annotation in annotations.items():
        annotation_id = annotation.get('id')
        # the evaluator writes ids into an array of numbers
        if not (is_id(annotation_id) or (type(annotation_id) is str and not use.evaluated)):
            yield about_annotation('annotation_id_invalid', index, annotation, 'has no usable id')
        elif annotation_id in seen:
            yield about_annotation('annotation_id_duplicate', index, annotation, 'is not the only one with this id')
        else:
            seen.add(annotation_id)
            if use.evaluated and annotation_id == 0:
                yield about_annotation('annotation_id_zero', index, annotation, 'would never count as found')


def _check_references(content: Mapping[str, Any], annotations: Mapping[int, Annotation]) -> Iterator[Finding]:
    images, categories = (
        {entry['id'] for entry in content[section] if type(entry) is dict and is_hashable(entry.get('id'))}
        for section in ('images', 'categories')
    )
    for index, annotation in annotations.items():
        image_id, category_id = annotation.get('image_id'), annotation.get('category_id')
        if not is_hashable(image_id) or image_id not in images:
            yield about_annotation('image_unknown', index, annotation, 'is of an image that the file does not list')
        if not is_hashable(category_id) or category_id not in categories:
            text = f'has the category {short(category_id)}, which the file does not list'
            yield about_annotation('category_unknown', index, annotation, text)


def _check_crowds(annotations: Mapping[int, Annotation], use: Use) -> Iterator[Finding]:
    for index, annotation in annotations.items():
        if 'iscrowd' not in annotation:
            if use.evaluated:
                text = 'has no iscrowd, which the evaluator needs'
                yield about_annotation('crowd_missing', index, annotation, text)
        elif not (type(crowd := annotation['iscrowd']) in (int, float, bool) and crowd in (0, 1)):
            yield about_annotation('crowd_invalid', index, annotation, f'has iscrowd={short(crowd)}')


def _append_box(boxes: 'array[float]', box: Any) -> bool:
    """Add a list of four finite numbers to a column; return False, and add nothing, if it is something else."""
    try:
        if type(box) is not list or len(box) != 4 or not math.isfinite(sum(box)):
            return False
        boxes.fromlist(box)
    except (TypeError, OverflowError, ValueError):  # an entry is no number, or beyond what a float holds
        return False
    return True


def _check_boxes(
    annotations: Mapping[int, Annotation], boxes: NDArray[np.float64], sizes: Mapping[Any, tuple[int, int]]
) -> Iterator[Finding]:
    """Look at areas and at boxes, (N, 4) as x, y, width, height in pixels."""
    indices = list(annotations)
    sides = sides_of(annotations.values(), sizes)
    with np.errstate(over='ignore', invalid='ignore'):
        ends = boxes[:, :2] + boxes[:, 2:]
        empty: Any = (boxes[:, 2:] <= 0).any(axis=1)
        outside: Any = ~empty & ((ends <= 0) | (boxes[:, :2] >= sides)).any(axis=1)
        reaches_out = (boxes[:, :2] < -MOST_OVERHANG) | (ends > sides + MOST_OVERHANG)
        overhanging = ~empty & ~outside & reaches_out.any(axis=1)
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
            text_of_box = f'has the box {short(annotation["bbox"])}, which {text}{where}'
            yield about_annotation(kind, indices[row], annotation, text_of_box)
    for row, (index, annotation) in enumerate(annotations.items()):
        area: Any = annotation.get('area')
        if type(area) not in (int, float) or not abs(area) < 1e300:  # NaN is not smaller either
            yield about_annotation('area_invalid', index, annotation, f'has the area {short(area)}')
        elif area <= 0 and not empty[row] and not outside[row]:
            yield about_annotation('area_not_positive', index, annotation, f'has the area {short(area)}')


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
                yield about_annotation('annotation_duplicate', index, annotation, text)
            else:
                seen[others] = annotation.get('id')
