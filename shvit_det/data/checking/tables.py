"""Checks of what annotations refer to: categories and images, as the annotation file lists them."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.errors import UsageError
from .findings import Finding, short

LARGEST_SIDE = 2**20  # pixels; OpenCV decodes no larger image
LARGEST_ID = 2**63


def is_id(value: Any) -> bool:
    """Tell whether a value serves as an id: an integer, also one that was written as 3.0."""
    if type(value) is float:
        return value.is_integer() and abs(value) < LARGEST_ID
    return type(value) is int and abs(value) < LARGEST_ID


def has_ids(entries: Sequence[Any]) -> Iterator[bool]:
    """Tell for each image or category whether its id is usable; strings are where no id is a number."""
    ids = [entry.get('id') if type(entry) is dict else None for entry in entries]
    if any(is_id(value) for value in ids):
        return (is_id(value) for value in ids)
    return (type(value) is str for value in ids)


def is_side(value: Any) -> bool:
    """Tell whether a value serves as the width or height of an image, in pixels."""
    return is_id(value) and 0 < value <= LARGEST_SIDE


def size_of(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the width and height that an entry lists, in pixels, or None where they are not usable."""
    width, height = image.get('width'), image.get('height')
    return (int(width), int(height)) if is_side(width) and is_side(height) else None  # type: ignore[arg-type]


def is_file_name(value: Any) -> bool:
    """Tell whether a value could be the name of a file here: text without NUL that the file system can spell."""
    if type(value) is not str or not value or '\0' in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def check_categories(content: Mapping[str, Any]) -> Iterator[Finding]:
    """Look at the entries of the list of categories."""
    usable: dict[int, dict[str, Any]] = {}
    entries = content['categories']
    for index, (category, has_id) in enumerate(zip(entries, has_ids(entries), strict=True)):
        if has_id and type(category.get('name')) is str:
            usable[index] = category
        else:
            yield Finding(
                'category_invalid', f'category {index} is {short(category)}: no id or no name', 'categories', index
            )
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


def check_classes(content: Mapping[str, Any], classes: Sequence[str], path: Path) -> None:
    """Compare the classes of a config with the categories of an annotation file.

    mmdet numbers the categories in the order of the file and ignores those that it does not know: with no match it
    trains on nothing, with some missing or in another order it gives objects the names of others.

    Raises:
        UsageError: If a class is not in the file, or their order differs.
    """
    names = [category.get('name') for category in content['categories'] if type(category) is dict]
    in_file = list(dict.fromkeys(name for name in names if type(name) is str))
    missing = [name for name in classes if name not in in_file]
    if missing and len(missing) == len(classes):
        raise UsageError(
            f'none of the classes of the config ({_first(classes)}) is a category of {path} ({_first(in_file)}): '
            f'set metainfo=dict(classes=...) of the datasets to the names in the file'
        )
    if missing:
        raise UsageError(
            f'{len(missing)} of the {len(classes)} classes of the config are no category of {path} '
            f'({_first(missing)}): set metainfo=dict(classes=...) of the datasets to the names in the file'
        )
    ordered = [name for name in in_file if name in classes]
    if ordered != list(classes):
        raise UsageError(
            f'the classes of the config are in another order ({_first(classes)}) than the categories of {path} '
            f'({_first(ordered)}), and labels would get the wrong names: use the order of the file'
        )


def check_images(content: Mapping[str, Any]) -> Iterator[Finding]:
    """Look at the entries of the list of images, not at the files."""
    entries = content['images']
    usable: dict[int, dict[str, Any]] = {}
    for index, (image, has_id) in enumerate(zip(entries, has_ids(entries), strict=True)):
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
    if len({image['id'] for image in usable.values()}) < len(usable):
        yield from _same_ids(usable)
    files = Counter(image['file_name'] for image in usable.values() if is_file_name(image.get('file_name')))
    if len(files) < len(usable):
        yield from _same_files(usable)


def _same_ids(images: Mapping[int, Mapping[str, Any]]) -> Iterator[Finding]:
    """Compare images by id: listed twice, or two that nobody can tell apart by the id that annotations name."""
    files: dict[Any, set[str]] = {}
    for image in images.values():
        files.setdefault(image['id'], set()).add(repr(image.get('file_name')))
    seen: set[Any] = set()
    for index, image in images.items():
        image_id = image['id']
        if len(files[image_id]) > 1:
            message = f'several images have the id {short(image_id)}, {short(image.get("file_name"))} is one of them'
            yield Finding('image_id_duplicate', message, 'images', index, image_id)
        elif image_id in seen:
            message = f'image {short(image_id)}, {short(image.get("file_name"))}, is listed twice'
            yield Finding('image_duplicate', message, 'images', index, image_id)
        seen.add(image_id)


def _same_files(images: Mapping[int, Mapping[str, Any]]) -> Iterator[Finding]:
    first: dict[str, Any] = {}
    for index, image in images.items():
        name = image.get('file_name')
        if is_file_name(name) and first.setdefault(name, image['id']) != image['id']:  # type: ignore[arg-type]
            message = f'{short(name)} is listed as image {short(first[name])} and as image {short(image["id"])}'  # type: ignore[index]
            yield Finding('image_name_duplicate', message, 'images', index, image['id'])


def _first(names: Sequence[str], count: int = 4) -> str:
    return ', '.join(names[:count]) + (', ...' if len(names) > count else '')
