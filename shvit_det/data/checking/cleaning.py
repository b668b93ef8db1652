"""A cleaned copy of an annotation file's content; the original is never changed."""

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .all_checks import check_content
from .findings import Finding, Repair
from .masks import counts_of_rle
from .objects import Use, image_sizes, is_hashable
from .tables import is_id

PASSES = 6  # a repair may bring something to light; each kind does so at most once
REMOVALS = (Repair.REMOVE, Repair.REMOVE_WITH_OBJECTS)


@dataclass
class Cleaned:
    """The copy, and what was done to it by kind of finding. All entries of the lists count, whatever they are."""

    content: dict[str, Any]
    removed_objects: Counter[str] = field(default_factory=Counter)
    removed_images: Counter[str] = field(default_factory=Counter)
    removed_categories: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    left: list[Finding] = field(default_factory=list)

    @property
    def is_changed(self) -> bool:
        return any((self.removed_objects, self.removed_images, self.removed_categories, self.changed))


def clean(
    content: Mapping[str, Any],
    findings: Iterable[Finding],
    use: Use,
    path: Path,
    classes: Sequence[str] | None = None,
    file_sizes: Mapping[int, tuple[int, int]] | None = None,
) -> Cleaned:
    """Return a copy of ``content`` in which nothing that has a repair is left.

    Args:
        content: What was checked; neither it nor anything in it is changed.
        findings: What was found in it, images of a check of the files among them.
        use: What the config does with it.
        path: The file, for sentences.
        classes: The classes of the config.
        file_sizes: Width and height of image files, by place in the list, for entries that lack them.
    """
    cleaned = Cleaned(dict(content))
    pending = list(findings)
    for _ in range(PASSES):
        repairable = [finding for finding in pending if finding.repair not in (Repair.NONE, Repair.KEEP)]
        if not repairable:
            break
        _repair(cleaned, repairable, file_sizes or {})
        file_sizes = None  # the places are others now
        pending = check_content(cleaned.content, use, path, classes)
    cleaned.left = pending
    return cleaned


def _repair(cleaned: Cleaned, findings: Sequence[Finding], file_sizes: Mapping[int, tuple[int, int]]) -> None:
    by_section: dict[str | None, dict[int, list[Finding]]] = {}
    for finding in findings:
        assert finding.index is not None
        by_section.setdefault(finding.section, {}).setdefault(finding.index, []).append(finding)
    sizes = image_sizes(cleaned.content)
    lost_categories, merged = _repair_categories(cleaned, by_section.get('categories', {}))
    lost_images = _repair_images(cleaned, by_section.get('images', {}), file_sizes)
    found = by_section.get('annotations', {})
    annotations = cleaned.content['annotations']
    used = {entry['id'] for entry in annotations if type(entry) is dict and is_id(entry.get('id'))}
    new_ids = (number for number in itertools.count(1) if number not in used)
    kept = []
    for index, entry in enumerate(annotations):
        repaired, reason = entry, _lost_with(entry, lost_images, lost_categories)
        if reason is None and index in found:
            repaired, reason = _repair_annotation(entry, found[index], sizes, new_ids)
            if reason is None:
                cleaned.changed.update(finding.kind for finding in found[index] if finding.repair != Repair.KEEP)
        if reason is not None:
            cleaned.removed_objects[reason] += 1
            continue
        if type(entry) is dict and is_hashable(entry.get('category_id')) and entry['category_id'] in merged:
            repaired = {**repaired, 'category_id': merged[entry['category_id']]}
            cleaned.changed['category_name_duplicate'] += 1
        kept.append(repaired)
    cleaned.content['annotations'] = kept


def _lost_with(entry: Any, lost_images: Mapping[Any, str], lost_categories: Mapping[Any, str]) -> str | None:
    """Return the kind of finding that costs an annotation its image or its category, or None."""
    if type(entry) is not dict:
        return None
    for key, lost in (('image_id', lost_images), ('category_id', lost_categories)):
        if is_hashable(entry.get(key)) and entry[key] in lost:
            return lost[entry[key]]
    return None


def _repair_categories(
    cleaned: Cleaned, found: Mapping[int, Sequence[Finding]]
) -> tuple[dict[Any, str], dict[Any, Any]]:
    """Remove categories; return the ids that went, with the kind, and those that became another."""
    lost: dict[Any, str] = {}
    merged: dict[Any, Any] = {}
    entries = cleaned.content['categories']
    kept = [category for index, category in enumerate(entries) if index not in found]
    kept_ids = {category['id'] for category in kept}
    first_id = {category['name']: category['id'] for category in kept}
    for index, (finding, *_) in found.items():
        category = entries[index]
        cleaned.removed_categories[finding.kind] += 1
        if finding.repair == Repair.MERGE:
            merged[category['id']] = first_id[category['name']]
        elif finding.repair == Repair.REMOVE_WITH_OBJECTS and type(category) is dict:
            category_id = category.get('id')
            if is_hashable(category_id) and category_id not in kept_ids:
                lost[category_id] = finding.kind
    cleaned.content['categories'] = kept
    return lost, merged


def _repair_images(
    cleaned: Cleaned, found: Mapping[int, Sequence[Finding]], file_sizes: Mapping[int, tuple[int, int]]
) -> dict[Any, str]:
    """Remove images or write their size in; return the ids that went, with the kind."""
    lost: dict[Any, str] = {}
    kept = []
    for index, image in enumerate(cleaned.content['images']):
        findings = found.get(index, ())
        removal = next((finding for finding in findings if finding.repair in REMOVALS), None)
        size = next((finding for finding in findings if finding.repair == Repair.MEASURE), None)
        if removal is None and size is not None and index not in file_sizes:
            removal = size
        if removal is None:
            if size is not None:
                image = {**image, 'width': file_sizes[index][0], 'height': file_sizes[index][1]}
                cleaned.changed[size.kind] += 1
            kept.append(image)
            continue
        cleaned.removed_images[removal.kind] += 1
        if removal.repair != Repair.REMOVE and type(image) is dict and is_hashable(image.get('id')):
            lost[image['id']] = removal.kind
    cleaned.content['images'] = kept
    return lost


def _repair_annotation(
    entry: Any, findings: Sequence[Finding], sizes: Mapping[Any, tuple[int, int]], new_ids: Iterator[int]
) -> tuple[Any, str | None]:
    """Return the repaired annotation, or the kind of finding that it is removed for."""
    removal = next((finding for finding in findings if finding.repair in REMOVALS), None)
    if removal is not None:
        return entry, removal.kind
    repaired = dict(entry)
    parts = {finding.part: finding.kind for finding in findings if finding.repair == Repair.REMOVE_PARTS}
    if parts:
        repaired['segmentation'] = [
            polygon for number, polygon in enumerate(entry['segmentation']) if number not in parts
        ]
        if not repaired['segmentation']:
            return entry, next(iter(parts.values()))
    for finding in findings:
        if finding.repair == Repair.RENUMBER:
            repaired['id'] = next(new_ids)
        elif finding.repair == Repair.NO_CROWD:
            repaired['iscrowd'] = 0
        elif finding.repair == Repair.CLIP:
            repaired['bbox'] = clip_box(entry['bbox'], *sizes[entry['image_id']])
        elif finding.repair == Repair.AREA:
            repaired['area'] = area_of(repaired)
            if not 0 < repaired['area'] < math.inf:
                return entry, finding.kind
    return repaired, None


def clip_box(box: Sequence[float], width: int, height: int) -> list[float]:
    """Return the part of a box (x, y, width, height, in pixels) within an image."""
    left, top = max(box[0], 0), max(box[1], 0)
    return [left, top, min(box[0] + box[2], width) - left, min(box[1] + box[3], height) - top]


def area_of(annotation: Mapping[str, Any]) -> float:
    """Return what the polygons or the RLE of an annotation cover, in square pixels; what the box does without them."""
    mask = annotation.get('segmentation')
    area = 0.0
    if type(mask) is dict:
        counts = counts_of_rle(mask.get('counts'))
        area = 0.0 if counts is None else float(counts[1::2].sum())
    elif type(mask) is list:
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # where masks are not used, nobody checked them
            area = math.fsum(polygon_area(polygon) for polygon in mask)
    if not 0 < area < math.inf:
        area = float(annotation['bbox'][2]) * float(annotation['bbox'][3])
    return area


def polygon_area(polygon: Sequence[float]) -> float:
    """Return the area within a polygon x, y, x, y, ..."""
    x, y = np.array(polygon, np.float64).reshape(-1, 2).T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
