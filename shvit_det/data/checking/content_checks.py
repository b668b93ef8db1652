"""All checks of what an annotation file says: its categories and images here, and the annotations in their module.

They never raise on bad content, whatever JSON it is. They run for every annotation of COCO, 860 000 of them, before a
run starts, so that each has to take microseconds.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.garbage_collection import collector_paused
from .annotation_checks import are_fractions, check_annotations, check_box_layout
from .annotation_file import Use, entries_by_place, entries_with_ids, is_file_name, is_hashable, size_of
from .casting import cast_content
from .findings import KINDS, Finding, errors_among, short
from .mask_checks import check_masks_lie_in_boxes
from .object_counts import count_objects, reason_not_used

ORDER = {kind: number for number, kind in enumerate(KINDS)}


def check_content(
    content: Mapping[str, Any], use: Use, path: Path, classes: Sequence[str] | None = None
) -> list[Finding]:
    """Return everything that is wrong with the content of an annotation file, by kind.

    Args:
        content: The three lists, as :func:`~.annotation_file.read_annotations` returns them.
        path: The file, for messages.
        classes: The classes of the config, or None where it states none.
    """
    return cast_and_check(content, use, path, classes)[1]


def cast_and_check(
    content: Mapping[str, Any], use: Use, path: Path, classes: Sequence[str] | None = None
) -> tuple[Mapping[str, Any], list[Finding]]:
    """Return the content with what is in another form than COCO's cast to it, and what :func:`check_content` returns.

    What was cast is among the findings; the others are about the content that is returned.
    """
    forms: dict[tuple[str, Any], Finding] = {}
    with collector_paused():
        while True:
            findings = [
                *check_file(content, path, classes),
                *_check_categories(content),
                *_check_image_entries(content),
                *check_annotations(content, use),
            ]
            cast, more = cast_content(content, findings)
            if not more:
                break
            content = cast
            for finding in more:  # an id may be cast because another one was
                forms.setdefault((finding.kind, finding.index), finding)
        if not errors_among(findings):
            findings += check_box_layout(content, findings, path)
            findings += check_masks_lie_in_boxes(content, path) if use.masks else ()
            findings += _check_objects(content, use, path, classes)
        findings += _check_unused(content, classes)
    return content, sorted([*forms.values(), *findings], key=lambda finding: ORDER[finding.kind])


def check_file(content: Mapping[str, Any], path: Path, classes: Sequence[str] | None) -> Iterator[Finding]:
    """Look at what concerns the file and no single entry: whether it lists images, and the classes of the config."""
    if not content['images']:
        yield Finding('file', f'{path} lists no image')
    if classes is not None and (fault := _class_fault(content, classes, path)):
        yield Finding('classes', fault)


def _class_fault(content: Mapping[str, Any], classes: Sequence[str], path: Path) -> str | None:
    """Return how the classes of a config differ from the categories of an annotation file; None if they fit.

    mmdet numbers the categories in the order of the file and ignores those that it does not know: with no match it
    trains on nothing, with some missing or in another order it gives objects the names of others.
    """
    names = [category.get('name') for category in entries_by_place(content['categories']).values()]
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
            f'({_first(missing)}): if only this file lacks them, add them to its categories, in the order of the '
            f'classes; else set metainfo=dict(classes=...) of all datasets to the names in the file'
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
    entries = entries_with_ids(content['categories']).items()
    usable = {index: category for index, category in entries if type(category.get('name')) is str}
    names, repeated = _names_by_id(usable, 'name')
    first_id: dict[str, Any] = {}
    for index, category in enumerate(content['categories']):
        if index not in usable:
            message = f'category {index} is {short(category)}: no id or no name'
            yield Finding('category_invalid', message, 'categories', index)
            continue
        name, category_id = category['name'], category['id']
        if len(names[category_id]) > 1:
            both = ' and '.join(short(other) for other in sorted(names[category_id]))
            message = f'the categories {both} share the id {short(category_id)}'
            yield Finding('category_id_duplicate', message, 'categories', index)
        elif index in repeated:
            yield Finding('category_duplicate', f'category {short(name)} is listed twice', 'categories', index)
        elif (first := first_id.setdefault(name, category_id)) != category_id:
            message = f'the categories {short(first)} and {short(category_id)} share the name {short(name)}'
            yield Finding('category_name_duplicate', message, 'categories', index)


def _names_by_id(entries: Mapping[int, Mapping[str, Any]], key: str) -> tuple[dict[Any, set[Any]], set[int]]:
    """Return the names of the entries with an id, by id, and the places of entries with the id and name of another."""
    names: dict[Any, set[Any]] = {}
    repeated: set[int] = set()
    for index, entry in entries.items():
        own = names.setdefault(entry['id'], set())
        name = entry.get(key) if type(entry.get(key)) is str else None
        if name in own:
            repeated.add(index)
        own.add(name)
    return names, repeated


def _check_image_entries(content: Mapping[str, Any]) -> Iterator[Finding]:
    usable = entries_with_ids(content['images'])
    names, repeated = _names_by_id(usable, 'file_name')
    first_id: dict[Any, Any] = {}
    for index, image in enumerate(content['images']):
        if index not in usable:
            yield Finding('image_invalid', f'image {index} is {short(image)}: no usable id', 'images', index)
            continue
        image_id, name = image['id'], image.get('file_name')
        found = []
        if not is_file_name(name):
            found.append(('image_invalid', f'image {short(image_id)} has the file name {short(name)}'))
        else:
            if size_of(image) is None:
                sides = f'{short(image.get("width"))} x {short(image.get("height"))}'
                text = f'image {short(image_id)}, {short(name)}, has the width and height {sides}'
                found.append(('image_size_invalid', text))
            if (first := first_id.setdefault(name, image_id)) != image_id:
                text = f'{short(name)} is listed as image {short(first)} and as image {short(image_id)}'
                found.append(('image_name_duplicate', text))
        if len(names[image_id]) > 1:
            text = f'several images have the id {short(image_id)}, {short(name)} is one of them'
            found.append(('image_id_duplicate', text))
        elif index in repeated:
            found.append(('image_duplicate', f'image {short(image_id)}, {short(name)}, is listed twice'))
        yield from (Finding(kind, message, 'images', index, image_id) for kind, message in found)


def _check_objects(
    content: Mapping[str, Any], use: Use, path: Path, classes: Sequence[str] | None
) -> Iterator[Finding]:
    """Look whether there is an object to train on or to score, in content without errors."""
    if not content['annotations']:
        if use.needs_objects and content['images']:
            yield Finding(
                'no_objects', f'{path} has no annotations, and a detector needs objects to train on or to be scored'
            )
        return
    reason = reason_not_used(content, classes, use.min_size)
    if all(map(reason, content['annotations'])):  # mostly this ends at the first
        counts = count_objects(content, classes, use.min_size)
        message = f'{path}: {counts.as_phrase("left to train on or to score")}'
        if counts.crowd == counts.total:
            message += (
                ': if these are single objects, whose masks a program exported as RLE, set iscrowd to 0 in the file'
            )
        elif are_fractions(content):
            message += ': the boxes seem to be fractions of the width and the height, where COCO has pixels'
        yield Finding('no_objects', message)


def _check_unused(content: Mapping[str, Any], classes: Sequence[str] | None) -> Iterator[Finding]:
    """Look for categories that no object has, among those that are classes of the config."""
    named = (entry.get('category_id') for entry in content['annotations'] if type(entry) is dict)
    used = {category_id for category_id in named if is_hashable(category_id)}
    entries = entries_by_place(content['categories'])
    supercategories = Counter(repr(entry.get('supercategory')) for entry in entries.values())
    for index, entry in entries.items():
        name, category_id = entry.get('name'), entry.get('id')
        if not used or not is_hashable(category_id) or category_id in used or not (classes is None or name in classes):
            continue
        message = f'no object has the category {short(name)}'
        if number := supercategories[repr(name)]:
            message += f', which is the supercategory of {number} others: leave it out of metainfo.classes'
        yield Finding('category_unused', message, 'categories', index)
