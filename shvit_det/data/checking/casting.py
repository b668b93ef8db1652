"""Values that programs write in another form than COCO's and that mean the same, cast to COCO's form.

Examples are numbers as text, an area in a list, and a polygon without the list around it. Only what a check has found
to be unusable is cast, and only if nothing is guessed.
"""

import ast
import contextlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .annotation_file import entries_by_id, entries_by_place, is_hashable, is_id
from .findings import Fault, Finding, short

KEYS = {  # by the kind of finding, which values of the entry may be in another form
    'category_invalid': ('id', 'name'),
    'image_invalid': ('id',),
    'image_size_invalid': ('width', 'height'),
    'annotation_id_invalid': ('id',),
    'image_unknown': ('image_id',),
    'category_unknown': ('category_id',),
    'box_invalid': ('bbox', 'area'),  # which is looked at where the box is usable
    'area_invalid': ('area',),
    'crowd_invalid': ('iscrowd', 'ignore'),
    'mask_invalid': ('segmentation',),
    'polygon_invalid': ('segmentation',),
    'polygon_short': ('segmentation',),
    'rle_invalid': ('segmentation',),
}
NUMBER = re.compile(r'\s*[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?\s*', re.ASCII)
LONGEST_NUMBER = 40  # characters
FLAGS = {'true': 1, 'false': 0}

Cast = Callable[[Any], Any]  # returns the same object where there is no other form


def cast_content(content: Mapping[str, Any], findings: Iterable[Finding]) -> tuple[dict[str, Any], list[Finding]]:
    """Return a copy in which values that were found to be unusable are cast, and a finding for each changed entry."""
    keys: dict[Any, dict[Any, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))  # by section and place
    for finding in findings:
        if finding.kind in KEYS:
            keys[finding.section][finding.index].update(dict.fromkeys(KEYS[finding.kind]))
    cast, forms = dict(content), []
    for section in ('categories', 'images', 'annotations'):  # annotations refer to the others
        if not keys[section]:
            continue
        casts = _casts(section, cast)
        entries = cast[section] = list(content[section])
        for index, own_keys in keys[section].items():
            entry = entries[index]
            values = {key: casts[key](entry[key]) for key in own_keys if type(entry) is dict and key in entry}
            changes = {key: value for key, value in values.items() if value is not entry[key]}
            if changes:
                entries[index] = {**entry, **changes}
                forms.append(_finding(section, index, entry, changes))
    return cast, forms


def _casts(section: str, content: Mapping[str, Any]) -> dict[str, Cast]:
    """Return how each value of the entries of a section is cast."""
    if section == 'annotations':
        return {
            'id': _integer,
            'image_id': _reference(content['images']),
            'category_id': _reference(content['categories']),
            'bbox': _box,
            'area': _number,
            'iscrowd': _flag,
            'ignore': _flag,
            'segmentation': _mask,
        }
    return {'id': _own_id(content[section]), 'name': _name, 'width': _integer, 'height': _integer}


def _finding(section: str, index: int, entry: Mapping[str, Any], changes: Mapping[str, Any]) -> Finding:
    key, *others = sorted(changes, key=lambda key: key == 'segmentation')
    text = f'has {key}={short(entry[key])} where COCO has {short(changes[key])}'
    if others:
        text += f', and {", ".join(others)} in another form too'
    if section == 'annotations':
        return Fault('mask_form' if key == 'segmentation' else 'annotation_form', text).found_in(entry, index)
    if section == 'images':
        name = f'image {short(entry.get("id"))}, {short(entry.get("file_name"))},'
        return Finding('image_form', f'{name} {text}', 'images', index, entry.get('id'))
    return Finding('category_form', f'category {short(entry.get("name"))} {text}', 'categories', index)


def _number(value: Any) -> Any:
    """Cast a number that is written as text or is alone in a list."""
    inner = value[0] if type(value) is list and len(value) == 1 else value
    if type(inner) is str:
        if len(inner) > LONGEST_NUMBER or not NUMBER.fullmatch(inner):
            return value
        return int(inner) if inner.strip().lstrip('+-').isdigit() else float(inner)
    return inner if type(inner) in (int, float) else value


def _integer(value: Any) -> Any:
    """Cast an integer, also one that is written as ``'3.0'``."""
    number = _number(value)
    return int(number) if number is not value and is_id(number) else value


def _flag(value: Any) -> Any:
    """Cast 0 or 1; null is 0 to every reader that takes it."""
    if type(value) is str and value.strip().lower() in FLAGS:
        return FLAGS[value.strip().lower()]
    number = 0 if value is None else _number(value)
    return number if number in (0, 1) else value


def _name(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _own_id(entries: Iterable[Any]) -> Cast:
    """Return the cast of the ids of a list to numbers, if some of them are numbers; no two become equal."""
    ids = [entry.get('id') for entry in entries_by_place(entries).values()]
    numbers = Counter(filter(is_id, map(_integer, ids)))
    numbered = any(map(is_id, ids))

    def cast(own: Any) -> Any:
        number = _integer(own)
        return number if numbered and is_id(number) and numbers[number] == 1 else own

    return cast


def _reference(entries: Iterable[Any]) -> Cast:
    """Return the cast of references to the ids of a list: one of the two may be the text of the other."""
    by_number: dict[Any, list[Any]] = defaultdict(list)
    for own in entries_by_id(entries):
        by_number[_integer(own)].append(own)

    def cast(reference: Any) -> Any:
        number = _integer(reference)
        meant = by_number.get(number, ()) if is_hashable(number) else ()
        return meant[0] if len(meant) == 1 else reference

    return cast


def _unpacked(value: Any, kind: type) -> Any:
    """Return what a text of JSON holds, as tables of text have it, or the list or dict that is alone in a list."""
    if type(value) is str and value.lstrip()[:1] in ('[', '{'):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    return value[0] if type(value) is list and len(value) == 1 and type(value[0]) is kind else value


def _numbers(values: list[Any]) -> list[Any]:
    return [_number(value) if type(value) is str else value for value in values]


def _box(box: Any) -> Any:
    cast = _unpacked(box, list)
    cast = _numbers(cast) if type(cast) is list else box
    return box if cast == box else cast


def _mask(mask: Any) -> Any:
    """Cast polygons to lists of x, y, x, y, ... in a list, and an RLE to a dict of integers and text."""
    cast = _unpacked(mask, dict)
    if type(cast) is list:
        single = _polygon(cast)
        cast = [_polygon(part) or part for part in cast] if single is None else [single]
    elif type(cast) is dict:
        cast = {**cast, **{key: _run_lengths(cast[key]) for key in ('size', 'counts') if key in cast}}
    return mask if cast == mask else cast


def _polygon(value: Any) -> list[Any] | None:
    """Return a polygon that is a list of numbers, or of points, or alone in further lists; None for anything else."""
    while type(value) is list and len(value) == 1:
        value = value[0]
    if type(value) is not list:
        return None
    if len(value) >= 3 and all(type(point) is list and len(point) == 2 for point in value):
        value = [number for point in value for number in point]
    numbers = _numbers(value)
    is_polygon = len(numbers) >= 6 and len(numbers) % 2 == 0 and all(type(number) in (int, float) for number in numbers)
    return numbers if is_polygon else None


def _run_lengths(value: Any) -> Any:
    """Cast the size or the counts of an RLE; Python writes the bytes that pycocotools returns as ``b'...'``."""
    if type(value) is list:
        numbers = _numbers(value)
        return [int(number) if type(number) is float and is_id(number) else number for number in numbers]
    if type(value) is str and value[:2] in ("b'", 'b"'):
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval(value).decode()
    return value
