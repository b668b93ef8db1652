"""An annotation file in COCO's form: how it is read, and which values in it can be used at all."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from ...common.errors import UsageError
from ...common.garbage_collection import collector_paused
from ...common.wrong_contents import wrong_content

SECTIONS = ('images', 'annotations', 'categories')
WHERE_TO_GET_DATA = (
    'name the folder of a COCO-layout data set with --data-root DIR, or draw the sample set with shvit-det make-sample'
)
LARGEST_SIDE = 2**20  # pixels; OpenCV decodes no larger image
LARGEST_ID = 2**63


@dataclass(frozen=True)
class Use:
    """What a config does with an annotation file, which decides what is a fault in it.

    Attributes:
        masks: Masks are loaded or scored.
        polygons_only: Run lengths are ignored (``poly2mask=False``).
        evaluated: The evaluator reads the file too.
        needs_objects: A file without any object would leave nothing to train on or to score.
        min_size: Smaller images are left out of training, in pixels.
    """

    masks: bool = False
    polygons_only: bool = False
    evaluated: bool = False
    needs_objects: bool = False
    min_size: float = 0

    def __or__(self, other: 'Use') -> 'Use':
        return Use(*map(max, astuple(self), astuple(other)))  # of two flags the larger is that which is True


# What other files begin with.
OTHER_FILES = {
    b'\xef\xbb\xbf': 'it begins with a byte-order mark, which pycocotools does not read: save it as UTF-8 without BOM',
    b'\xff\xfe': 'it is text in UTF-16: save it as UTF-8',
    b'\xfe\xff': 'it is text in UTF-16: save it as UTF-8',
    b'\x1f\x8b': 'it is compressed: unpack it with gunzip',
    b'PK\x03\x04': 'it is a zip archive: unpack it',
}


class NotCocoError(UsageError):
    """The content of an annotation file is not COCO JSON."""


def require_annotations(path: Path) -> None:
    """Raise ``UsageError`` if an annotation file does not exist."""
    if not path.is_file():
        raise UsageError(f'no annotation file {path}: {WHERE_TO_GET_DATA}')


def read_annotations(path: Path, images_only: bool = False) -> dict[str, Any]:
    """Return the content of a COCO annotation file.

    Args:
        path: The file.
        images_only: Whether annotations may be absent, as in the lists of test images that challenges give out.

    Raises:
        UsageError: If the file does not exist, or cannot be read.
        NotCocoError: If it is not JSON in UTF-8, or lacks one of the three lists.
    """
    require_annotations(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f'cannot read {path}: {error.strerror}') from error
    for beginning, what in OTHER_FILES.items():
        if data.startswith(beginning):
            raise NotCocoError(f'{path} is not COCO JSON: {what}')
    if (content := wrong_content(data[:512])) is not None:
        raise NotCocoError(f'{path} is not COCO JSON: it {content}')
    try:
        # not json.loads(data), which takes UTF-16 and byte-order marks too: pycocotools does not
        with collector_paused():
            content = json.loads(data.decode('utf-8'))
    except ValueError as error:  # covers broken JSON and broken UTF-8
        raise NotCocoError(f'{path} is not COCO JSON: {error}') from error
    except RecursionError as error:
        raise NotCocoError(f'{path} is not COCO JSON: its lists are nested too deeply') from error
    if images_only and isinstance(content, dict):
        content.setdefault('annotations', [])
    for section in SECTIONS:
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            but = ', which only --format-only does without' if section == 'annotations' else ''
            raise NotCocoError(f'{path} is not COCO JSON: it has no list {section!r}{but}')
    return content


def is_id(value: Any) -> bool:
    """Tell whether a value can be an id: an integer, also one that was written as 3.0."""
    return (type(value) is int or (type(value) is float and value.is_integer())) and abs(value) < LARGEST_ID


def is_hashable(value: Any) -> bool:
    """Tell whether a value from JSON could be an id that something is looked up by."""
    return type(value) in (int, str, float)


def is_file_name(value: Any) -> bool:
    """Tell whether a value could be the name of a file here: text without NUL that the file system can spell."""
    if type(value) is not str or not value or '\0' in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def size_of(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the width and height that an image's entry lists, in pixels, or None where they are not usable."""
    sides: list[Any] = [image.get('width'), image.get('height')]
    if not all(is_id(side) and 0 < side <= LARGEST_SIDE for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def entries_by_place(entries: Iterable[Any]) -> dict[int, dict[str, Any]]:
    """Return the images, annotations or categories that are JSON objects, by their place in the list."""
    return {index: entry for index, entry in enumerate(entries) if type(entry) is dict}


def entries_with_ids(entries: Iterable[Any]) -> dict[int, dict[str, Any]]:
    """Return the images or categories with a usable id, by their place; strings are usable where no id is a number."""
    objects = entries_by_place(entries)
    numbered = {index: entry for index, entry in objects.items() if is_id(entry.get('id'))}
    return numbered or {index: entry for index, entry in objects.items() if type(entry.get('id')) is str}


def entries_by_id(entries: Iterable[Any]) -> dict[Any, dict[str, Any]]:
    """Return the images, annotations or categories that something could be looked up by, by their ids."""
    return {entry['id']: entry for entry in entries if type(entry) is dict and is_hashable(entry.get('id'))}


def image_sizes(content: Mapping[str, Any]) -> dict[Any, tuple[int, int]]:
    """Return width and height, in pixels, by image id, where both are usable."""
    sized = ((image, size_of(image)) for image in entries_by_place(content['images']).values())
    return {image['id']: size for image, size in sized if size is not None and is_hashable(image.get('id'))}
