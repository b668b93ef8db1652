"""The cleaned copy of an annotation file's content, in which every fault that has a repair is repaired."""

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .annotation_file import SECTIONS, Use, image_sizes, is_hashable, is_id
from .content_checks import cast_and_check, check_content
from .findings import Finding, Repair, as_phrase
from .image_presence import with_slashes
from .mask_checks import counts_of_rle

MOST_PASSES = 6  # a repair may reveal another fault; each kind does so at most once
REMOVALS = (Repair.REMOVE, Repair.REMOVE_WITH_OBJECTS)

Sizes = Mapping[int, tuple[int, int]]


@dataclass
class Cleaned:
    """A cleaned copy and what was done to it.

    Attributes:
        removed: How many entries each list lost, by kind of finding.
        changed: How many objects and images were changed, by kind of finding.
        left: What is still wrong with the copy.
    """

    content: dict[str, Any]
    removed: dict[str, Counter[str]] = field(default_factory=lambda: {section: Counter() for section in SECTIONS})
    changed: Counter[str] = field(default_factory=Counter)
    left: list[Finding] = field(default_factory=list)

    @property
    def is_changed(self) -> bool:
        return any((*self.removed.values(), self.changed))

    def summary(self) -> str:
        """Return what was done as part of a sentence."""
        counts = {
            'objects removed': self.removed['annotations'],
            'images removed': self.removed['images'],
            'categories removed': self.removed['categories'],
            'objects or images changed': self.changed,
        }
        parts = [f'{sum(count.values())} {name} ({as_phrase(count)})' for name, count in counts.items() if count]
        return ', '.join(parts) or 'nothing to repair'


def clean(
    content: Mapping[str, Any],
    findings: Sequence[Finding],
    use: Use,
    path: Path,
    classes: Sequence[str] | None = None,
    file_sizes: Sizes | None = None,
) -> Cleaned:
    """Return a cleaned copy of ``content``.

    Args:
        content: What was checked; neither it nor anything in it is changed.
        findings: What was found in it and in its image files.
        file_sizes: Width and height of image files, by place in the list, for entries that lack them.
    """
    cleaned = Cleaned(dict(content), left=[finding for finding in findings if finding.repair != Repair.CAST])
    if len(cleaned.left) < len(findings):
        cleaned.content = dict(cast_and_check(content, use, path, classes)[0])
        cleaned.changed.update(finding.kind for finding in findings if finding.repair == Repair.CAST)
    for _ in range(MOST_PASSES):
        repairable = [finding for finding in cleaned.left if finding.repair not in (Repair.NONE, Repair.KEEP)]
        if not repairable:
            break
        _repair(cleaned, repairable, file_sizes or {})
        file_sizes = None  # the places have changed
        cleaned.left = check_content(cleaned.content, use, path, classes)
    return cleaned


def _repair(cleaned: Cleaned, findings: Sequence[Finding], file_sizes: Sizes) -> None:
    found: dict[str, dict[int, list[Finding]]] = {section: {} for section in SECTIONS}
    for finding in findings:
        assert finding.section is not None and finding.index is not None
        found[finding.section].setdefault(finding.index, []).append(finding)
    sizes = image_sizes(cleaned.content)
    lost_categories, merged = _repair_categories(cleaned, found['categories'])
    lost = {'image_id': _repair_images(cleaned, found['images'], file_sizes), 'category_id': lost_categories}
    annotations = cleaned.content['annotations']
    used = {entry['id'] for entry in annotations if type(entry) is dict and is_id(entry.get('id'))}
    new_ids = (number for number in itertools.count(1) if number not in used)
    kept = []
    for index, entry in enumerate(annotations):
        repaired, reason = entry, _lost_with(entry, lost)
        if reason is None and index in found['annotations']:
            repaired, reason = _repair_annotation(entry, found['annotations'][index], sizes, new_ids)
            if reason is None:
                cleaned.changed.update(finding.kind for finding in found['annotations'][index])
        if reason is not None:
            cleaned.removed['annotations'][reason] += 1
            continue
        if type(entry) is dict and is_hashable(entry.get('category_id')) and entry['category_id'] in merged:
            repaired = {**repaired, 'category_id': merged[entry['category_id']]}
            cleaned.changed['category_name_duplicate'] += 1
        kept.append(repaired)
    cleaned.content['annotations'] = kept


def _lost_with(entry: Any, lost: Mapping[str, Mapping[Any, str]]) -> str | None:
    """Return the kind of finding that removed the image or the category of an annotation, or None."""
    if type(entry) is not dict:
        return None
    kinds = (removed.get(entry.get(key)) for key, removed in lost.items() if is_hashable(entry.get(key)))
    return next((kind for kind in kinds if kind is not None), None)


def _repair_categories(
    cleaned: Cleaned, found: Mapping[int, Sequence[Finding]]
) -> tuple[dict[Any, str], dict[Any, Any]]:
    """Remove categories; return the removed ids with the kind of finding, and the ids that became another."""
    lost: dict[Any, str] = {}
    merged: dict[Any, Any] = {}
    entries = cleaned.content['categories']
    kept = [category for index, category in enumerate(entries) if index not in found]
    kept_ids = {category['id'] for category in kept}
    first_id = {category['name']: category['id'] for category in kept}
    for index, (finding, *_) in found.items():
        category = entries[index]
        cleaned.removed['categories'][finding.kind] += 1
        if finding.repair == Repair.MERGE:
            merged[category['id']] = first_id[category['name']]
        elif finding.repair == Repair.REMOVE_WITH_OBJECTS and type(category) is dict:
            category_id = category.get('id')
            if is_hashable(category_id) and category_id not in kept_ids:
                lost[category_id] = finding.kind
    cleaned.content['categories'] = kept
    return lost, merged


def _repair_images(cleaned: Cleaned, found: Mapping[int, Sequence[Finding]], file_sizes: Sizes) -> dict[Any, str]:
    """Remove images or write their size in; return the removed ids with the kind of finding."""
    lost: dict[Any, str] = {}
    kept = []
    for index, image in enumerate(cleaned.content['images']):
        findings = found.get(index, ())
        removal = next((finding for finding in findings if finding.repair in REMOVALS), None)
        if removal is None and index not in file_sizes:
            removal = next((finding for finding in findings if finding.repair == Repair.MEASURE), None)
        if removal is not None:
            cleaned.removed['images'][removal.kind] += 1
            if removal.repair != Repair.REMOVE and type(image) is dict and is_hashable(image.get('id')):
                lost[image['id']] = removal.kind
            continue
        for finding in findings:
            if finding.repair == Repair.MEASURE:
                image = {**image, 'width': file_sizes[index][0], 'height': file_sizes[index][1]}
            elif finding.repair == Repair.SLASHES:
                image = {**image, 'file_name': with_slashes(image['file_name'])}
            else:
                continue
            cleaned.changed[finding.kind] += 1
        kept.append(image)
    cleaned.content['images'] = kept
    return lost


def _repair_annotation(
    entry: Any, findings: Sequence[Finding], sizes: Mapping[Any, tuple[int, int]], new_ids: Iterator[int]
) -> tuple[Any, str | None]:
    """Return the repaired annotation, or the kind of finding for which it is removed."""
    removal = next((finding for finding in findings if finding.repair in REMOVALS), None)
    if removal is not None:
        return entry, removal.kind
    repaired = dict(entry)
    parts = {
        part: finding.kind for finding in findings if finding.repair == Repair.REMOVE_PARTS for part in finding.parts
    }
    if parts:
        polygons = [polygon for number, polygon in enumerate(entry['segmentation']) if number not in parts]
        if not polygons:
            return entry, next(iter(parts.values()))
        repaired['segmentation'] = polygons
    for finding in findings:
        if finding.repair == Repair.RENUMBER:
            repaired['id'] = next(new_ids)
        elif finding.repair == Repair.NO_CROWD:
            repaired['iscrowd'] = 0
        elif finding.repair == Repair.CLIP:
            repaired['bbox'] = _clip_box(entry['bbox'], *sizes[entry['image_id']])
        elif finding.repair == Repair.AREA:
            repaired['area'] = area_of(repaired)
            if not 0 < repaired['area'] < math.inf:
                return entry, finding.kind
    return repaired, None


def _clip_box(box: Sequence[float], width: int, height: int) -> list[float]:
    left, top = max(box[0], 0), max(box[1], 0)
    return [left, top, min(box[0] + box[2], width) - left, min(box[1] + box[3], height) - top]


def area_of(annotation: Mapping[str, Any]) -> float:
    """Return the area of an annotation's polygons or RLE, in square pixels; of its box where it has neither."""
    mask = annotation.get('segmentation')
    area = 0.0
    if type(mask) is dict:
        counts = counts_of_rle(mask.get('counts'))
        area = 0.0 if counts is None else float(counts[1::2].sum())
    elif type(mask) is list:
        # nobody has checked them where masks are not used
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            area = math.fsum(_polygon_area(polygon) for polygon in mask)
    if not 0 < area < math.inf:
        area = float(annotation['bbox'][2]) * float(annotation['bbox'][3])
    return area


def _polygon_area(polygon: Sequence[float]) -> float:
    x, y = np.array(polygon, np.float64).reshape(-1, 2).T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
