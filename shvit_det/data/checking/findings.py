"""What the checks of a data set can find: every kind of fault, its severity, and how cleaning repairs it."""

import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ...common.durations import counted

Severity = Literal['error', 'warning']
CHECK = 'shvit-det check-data CONFIG'
LONGEST_VALUE = 100  # characters


class Repair(str, Enum):
    """What cleaning does with the entry that a finding is about; the texts are those of the documentation."""

    __str__ = str.__str__  # the text without the class, as in enum.StrEnum of Python 3.11

    NONE = 'nothing: repair it by hand'
    KEEP = 'kept'
    REMOVE = 'removed'
    REMOVE_WITH_OBJECTS = 'removed with its objects'
    MERGE = 'its objects get the first of the categories'
    MEASURE = 'the size of the file is written in; without the file removed with its objects'
    RENUMBER = 'a new id'
    CLIP = 'clipped to the image'
    AREA = 'computed from the polygons, the RLE or the box'
    NO_CROWD = 'iscrowd=0 is written in'
    CAST = 'written in the form of COCO'
    SLASHES = 'the name with slashes'
    REMOVE_PARTS = 'the part is removed; the object too if it was the only one'


@dataclass(frozen=True)
class FindingKind:
    """A kind of finding.

    An error ends a run or teaches the detector something false. A warning costs an object at most, which mmdet ignores.
    """

    severity: Severity
    meaning: str
    repair: Repair


ERROR, WARNING = partial(FindingKind, 'error'), partial(FindingKind, 'warning')

KINDS: dict[str, FindingKind] = {
    # the file
    'file': ERROR('an annotation file that cannot be used at all', Repair.NONE),
    'classes': ERROR('classes of the config that are not the categories of the file', Repair.NONE),
    'no_objects': ERROR('an annotation file without an object to train on or to score', Repair.NONE),
    'no_images': ERROR('an annotation file of whose images not one is found', Repair.NONE),
    'box_layout': ERROR('boxes that are corners or centres, where COCO has `[x, y, width, height]`', Repair.NONE),
    'mask_layout': ERROR('polygons that lie outside the boxes of most objects', Repair.NONE),
    # the data sets together
    'evaluator': ERROR('an evaluator that scores other data than are predicted', Repair.NONE),
    'leaked_image': WARNING('an image for evaluation that is trained on too', Repair.KEEP),
    # categories
    'category_form': ERROR('a category with an id or a name in another form than COCO\'s, as `"1"` for 1', Repair.CAST),
    'category_invalid': ERROR('a category without a usable id or name', Repair.REMOVE_WITH_OBJECTS),
    'category_duplicate': ERROR('a category that is listed twice', Repair.REMOVE),
    'category_id_duplicate': ERROR('an id that two categories share', Repair.REMOVE_WITH_OBJECTS),
    'category_name_duplicate': ERROR('a name that two categories share', Repair.MERGE),
    'category_unused': WARNING('a class of the config that no object has', Repair.KEEP),
    # entries of images
    'image_form': ERROR('an image with an id or a size in another form than COCO\'s, as `"640"` for 640', Repair.CAST),
    'image_invalid': ERROR('an image without a usable id or file name', Repair.REMOVE_WITH_OBJECTS),
    'image_duplicate': ERROR('an image that is listed twice', Repair.REMOVE),
    'image_id_duplicate': ERROR('an id that two images share', Repair.REMOVE_WITH_OBJECTS),
    'image_name_duplicate': WARNING('a file that is listed under two ids', Repair.KEEP),
    'image_size_invalid': ERROR('an image without a usable width or height', Repair.MEASURE),
    # image files
    'image_backslash': ERROR('a file name with backslashes, under which only Windows finds the file', Repair.SLASHES),
    'image_missing': ERROR('an image file that does not exist', Repair.REMOVE_WITH_OBJECTS),
    'image_empty': ERROR('an image file of zero bytes', Repair.REMOVE_WITH_OBJECTS),
    'image_unreadable': ERROR('a file that cannot be decoded', Repair.REMOVE_WITH_OBJECTS),
    'image_truncated': ERROR('an image file that ends too early', Repair.REMOVE_WITH_OBJECTS),
    'image_size_differs': ERROR('an image of another size than listed', Repair.REMOVE_WITH_OBJECTS),
    'image_rotated': ERROR('an image that EXIF turns away from its boxes', Repair.REMOVE_WITH_OBJECTS),
    'image_orientation': WARNING('an image that EXIF turns or mirrors, size unchanged', Repair.KEEP),
    'image_grey': WARNING('a greyscale image, loaded with three equal channels', Repair.KEEP),
    'image_cmyk': WARNING('a CMYK image, loaded as RGB', Repair.KEEP),
    'image_deep': WARNING('an image of 16 bits or more, loaded with the upper 8', Repair.KEEP),
    'image_pages': WARNING('a file of several pages or frames, loaded as the first', Repair.KEEP),
    'image_alpha': WARNING('an image with transparency, which is dropped', Repair.KEEP),
    # annotations
    'annotation_form': ERROR(
        'an annotation with values in another form than COCO\'s, as `"0"` for 0 or `[9.5]` for 9.5', Repair.CAST
    ),
    'annotation_invalid': ERROR('an annotation that is no JSON object', Repair.REMOVE),
    'annotation_id_invalid': ERROR('an annotation without a usable id', Repair.RENUMBER),
    'annotation_id_duplicate': ERROR('an id that two annotations share', Repair.RENUMBER),
    'annotation_id_zero': WARNING('id 0, which the evaluator takes for "not found"', Repair.RENUMBER),
    'annotation_duplicate': WARNING('an object that is annotated twice in the same way', Repair.REMOVE),
    'image_unknown': ERROR('an annotation of an image that is not listed', Repair.REMOVE),
    'category_unknown': ERROR('an annotation of a category that is not listed', Repair.REMOVE),
    'box_invalid': ERROR('a box that is not four finite numbers, or larger than any image', Repair.REMOVE),
    'box_empty': WARNING('a box without area', Repair.REMOVE),
    'box_thin': WARNING('a box narrower than a pixel, which mmdet ignores', Repair.KEEP),
    'box_outside': WARNING('a box outside its image', Repair.REMOVE),
    'box_overhanging': WARNING('a box that reaches more than one pixel beyond its image', Repair.CLIP),
    'area_invalid': ERROR('an annotation without a usable area', Repair.AREA),
    'area_not_positive': WARNING('an area of 0 or less beside a box that has one', Repair.AREA),
    'crowd_missing': ERROR('an annotation without iscrowd in a split that is evaluated', Repair.NO_CROWD),
    'crowd_invalid': ERROR('an iscrowd that is neither 0 nor 1, or an ignore that is text', Repair.REMOVE),
    # masks, looked at where the config uses them
    'mask_form': ERROR("a mask in another form than COCO's, as `[x, y, ...]` for `[[x, y, ...]]`", Repair.CAST),
    'mask_missing': ERROR('an object without a mask', Repair.REMOVE),
    'mask_invalid': ERROR('a mask that is neither polygons nor RLE', Repair.REMOVE),
    'polygon_invalid': ERROR('a polygon that is not pairs of finite numbers', Repair.REMOVE_PARTS),
    'polygon_short': ERROR('a polygon of less than three points', Repair.REMOVE_PARTS),
    'polygon_far': ERROR('a polygon that is further outside its image than the image is large', Repair.REMOVE_PARTS),
    'rle_invalid': ERROR('an RLE whose counts do not fill its size', Repair.REMOVE),
    'rle_size': ERROR('an RLE of another size than its image', Repair.REMOVE),
    'rle_unused': WARNING('an RLE in a config with `poly2mask=False`, which reads polygons only', Repair.KEEP),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault.

    Attributes:
        kind: A key of :data:`KINDS`.
        section: The list of the annotation file that the entry stands in; None if it is about the file.
        index: The place in that list.
        parts: The numbers of polygons.
    """

    kind: str
    message: str
    section: Literal['images', 'annotations', 'categories'] | None = None
    index: int | None = None
    image_id: Any = None
    annotation_id: Any = None
    parts: tuple[int, ...] = ()

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity

    @property
    def repair(self) -> Repair:
        return KINDS[self.kind].repair


class Fault(NamedTuple):
    """What is wrong with an annotation: a kind, a text for a sentence that begins with its name, polygons' numbers."""

    kind: str
    text: str
    parts: tuple[int, ...] = ()

    def found_in(self, annotation: Mapping[str, Any], index: int) -> Finding:
        annotation_id, image_id = annotation.get('id'), annotation.get('image_id')
        message = f'annotation {short(annotation_id)} of image {short(image_id)} {self.text}'
        return Finding(self.kind, message, 'annotations', index, image_id, annotation_id, self.parts)


def errors_among(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == 'error']


def by_kind(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Return the findings of each kind that there is, in the order of :data:`KINDS`."""
    found: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
    for finding in findings:
        found[finding.kind].append(finding)
    return {kind: each for kind, each in found.items() if each}


def as_phrase(kinds: Iterable[str]) -> str:
    """Return kinds, or a counter of them, as part of a sentence: ``'2 box_empty, 1 box_thin'``."""
    counts = Counter(kinds)
    return ', '.join(f'{counts[kind]} {kind}' for kind in KINDS if counts[kind])


def refusal(findings: Iterable[Finding], path: Path) -> str:
    """Return the sentence for errors that end a run before it starts."""
    errors = errors_among(findings)
    if about_file := [error for error in errors if error.section is None]:
        return about_file[0].message
    number, kinds = counted(len(errors), 'error'), as_phrase(error.kind for error in errors)
    way_out = f'{CHECK} lists them and writes a cleaned copy with --fix DIR'
    return f'{path} has {number} ({kinds}), the first: {errors[0].message}; {way_out}'


def short(value: Any) -> str:
    """Return the repr of a value from a file, cut to a length that fits into a sentence."""
    text = reprlib.repr(value)  # cuts what is deep or long before it is written out
    return text if len(text) <= LONGEST_VALUE else f'{text[: LONGEST_VALUE - 3]}...'
