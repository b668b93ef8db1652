"""What every reader of a layout returns: the splits of a data set as COCO dicts, and what was left out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...common.durations import counted
from ...common.errors import UsageError
from ...common.image_files import SIDEWAYS, decoding_fault, exif_orientation, find_fault, no_size_limit
from ..checking.cleaning import area_of

SPLITS = ('train', 'val', 'test')
SPLIT_NAMES = {  # of folders and files, in small letters
    **dict.fromkeys(('train', 'training'), 'train'),
    **dict.fromkeys(('val', 'valid', 'validation'), 'val'),
    **dict.fromkeys(('test', 'testing'), 'test'),
}
PICTURES = ('.jpg', '.jpeg', '.jpe', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
MOST_NAMES = 5  # of what was left out, in one line

Points = Sequence[float]  # x, y, x, y, ...


@dataclass
class Losses:
    """What was left out or changed, with the reason: names by what they have in common."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, name: str) -> None:
        self.names.setdefault(what, []).append(name)

    def lines(self) -> Iterator[str]:
        for what, names in self.names.items():
            more = f' and {len(names) - MOST_NAMES} more' if len(names) > MOST_NAMES else ''
            yield f'{what}: {len(names)} ({", ".join(names[:MOST_NAMES])}{more})'


@dataclass
class Split:
    """One part of a data set.

    Attributes:
        name: ``'train'``, ``'val'`` or ``'test'``.
        images: The folder that each ``file_name`` is relative to.
        content: The three lists of a COCO annotation file; ids of categories count from 1 in the order of the classes.
        source: The annotation file with the same images and objects, if there is one to train on as it is.
    """

    name: str
    images: Path
    content: dict[str, list[dict[str, Any]]]
    source: Path | None = None

    @property
    def objects(self) -> list[dict[str, Any]]:
        return self.content['annotations']

    def path_of(self, image: Mapping[str, Any]) -> Path:
        return self.images / image['file_name']


@dataclass
class Labels:
    """A data set that was read from a folder.

    Attributes:
        folder: The folder.
        layout: ``'coco'``, ``'yolo'``, ``'voc'`` or ``'labelme'``.
        classes: Their names, in the order of their labels.
        splits: The parts, by name.
        found: How many pictures and objects the files list.
        notes: Sentences on what was decided.
        losses: What was left out.
    """

    folder: Path
    layout: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    found: tuple[int, int]
    notes: list[str] = field(default_factory=list)
    losses: Losses = field(default_factory=Losses)

    @property
    def totals(self) -> tuple[int, int]:
        """How many pictures and objects there are."""
        splits = self.splits.values()
        return sum(len(split.content['images']) for split in splits), sum(len(split.objects) for split in splits)

    def without_outline(self) -> tuple[int, int]:
        """Return how many objects have a box alone, and how many there are; crowds do not count."""
        objects = [each for split in self.splits.values() for each in split.objects if not each.get('iscrowd')]
        return sum(not each.get('segmentation') for each in objects), len(objects)

    @property
    def has_masks(self) -> bool:
        """Whether every object has an outline."""
        return self.without_outline()[0] == 0

    def lines(self) -> Iterator[str]:
        """Yield what to tell the user: counts in and out, the splits, what was decided and what was left out."""
        yield f'{self.folder}: {self.layout} layout, {counted(len(self.classes), "class")}'
        for what, (pictures, objects) in (('listed', self.found), ('read', self.totals)):
            yield f'{what}: {counted(pictures, "picture")}, {counted(objects, "object")}'
        for split in self.splits.values():
            pictures, objects = len(split.content['images']), len(split.objects)
            empty = pictures - len({each['image_id'] for each in split.objects})
            without = f', {empty} without objects' if empty else ''
            yield f'{split.name}: {counted(pictures, "picture")}{without}, {counted(objects, "object")}'
        yield from self.notes
        yield from self.losses.lines()


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures in a folder and those below it, sorted."""
    return sorted(path for path in folder.rglob('*') if path.suffix.lower() in PICTURES and path.is_file())


def split_of_list(name: str) -> str | None:
    """Return the split that the name of a list says, also with a year as in ``train2017``; None if it says none."""
    return SPLIT_NAMES.get(name.lower().rstrip('0123456789'))


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders whose names are those of splits: ``train``, ``valid`` or ``val``, ``test``.

    Raises:
        UsageError: If two are the same split.
    """
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        if name := SPLIT_NAMES.get(path.name.lower()):
            if name in found:
                raise UsageError(f'{found[name]} and {path} would both be {name}: move one of them elsewhere')
            found[name] = path
    return found


def picture_size(path: Path) -> tuple[int, int] | str:
    """Return width and height of a picture as it is loaded, upright, in pixels; or why it is not complete."""
    if (fault := find_fault(path)) is not None:
        return fault.message
    try:
        with no_size_limit(), Image.open(path) as image:
            return (image.height, image.width) if exif_orientation(image) in SIDEWAYS else image.size
    except Exception as error:  # decoders raise what they like on damaged bytes
        return decoding_fault(error).message


def below(path: Path, root: Path) -> str:
    """Return a path relative to a folder, or the whole path where it lies elsewhere."""
    path = path.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


class SplitBuilder:
    """Collects the pictures and objects of one split from label files, and leaves out what is broken."""

    def __init__(self, name: str, folder: Path, losses: Losses) -> None:
        self.name, self.root, self.losses = name, folder.resolve(), losses
        self.images: list[dict[str, Any]] = []
        self.objects: list[dict[str, Any]] = []
        self.image: dict[str, Any] | None = None  # that of the next objects, None if it is left out
        self.num_images = self.num_objects = 0

    def relative(self, path: Path) -> str:
        return below(path, self.root)

    def add_image(self, path: Path) -> None:
        """Add the picture of the next objects; if it is broken, it is left out with them."""
        self.num_images += 1
        name, size = self.relative(path), picture_size(path)
        if isinstance(size, str):
            self.losses.add('pictures left out, with their objects', f'{name} {size}')
            self.image = None
        else:
            self.image = dict(id=len(self.images) + 1, file_name=name, width=size[0], height=size[1])
            self.images.append(self.image)

    def add_object(
        self, name: str, box: Points = (), polygons: Sequence[Points] = (), *, place: str, crowd: bool = False
    ) -> None:
        """Add an object to the last picture; what reaches beyond it is cut off.

        Args:
            name: Its class.
            box: Two opposite corners in pixels, ``[x, y, x, y]``; by default those of the polygons.
            polygons: Its outlines, each ``[x, y, x, y, ...]`` in pixels.
            place: Where its label stands, for messages.
            crowd: Whether it is neither trained on nor scored.
        """
        self.num_objects += 1
        if self.image is None:
            return
        outlines = [np.array(polygon, np.float64).reshape(-1, 2) for polygon in polygons]
        corners = np.concatenate(outlines) if outlines else np.array(box, np.float64).reshape(2, 2)
        limit = (self.image['width'], self.image['height'])
        (left, top), (right, bottom) = np.clip([corners.min(axis=0), corners.max(axis=0)], 0, limit).tolist()
        if not (right > left and bottom > top):
            self.losses.add('objects without area in their picture, left out', place)
            return
        entry: dict[str, Any] = dict(
            id=len(self.objects) + 1,
            image_id=self.image['id'],
            category_id=name,
            bbox=[round(value, 2) for value in (left, top, right - left, bottom - top)],
            segmentation=[np.clip(outline, 0, limit).round(2).ravel().tolist() for outline in outlines],
            iscrowd=int(crowd),
        )
        self.objects.append({**entry, 'area': round(area_of(entry), 2)})

    def split(self, classes: Sequence[str]) -> Split:
        """Return the split, with numbers in place of the names of classes."""
        ids = {name: number for number, name in enumerate(classes, start=1)}
        objects = [{**each, 'category_id': ids[each['category_id']]} for each in self.objects]
        return Split(self.name, self.root, content_of(self.images, objects, classes))


def content_of(images: list[dict], annotations: list[dict], classes: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    categories = [dict(id=number, name=name, supercategory='') for number, name in enumerate(classes, start=1)]
    return dict(images=images, annotations=annotations, categories=categories)


def labels_of(
    builders: Sequence[SplitBuilder], layout: str, classes: Sequence[str] | None = None, notes: Sequence[str] = ()
) -> Labels:
    """Return what the builders of a data set have collected; classes are by default the names found, sorted."""
    if classes is None:
        classes = sorted({each['category_id'] for builder in builders for each in builder.objects})
    found = (sum(each.num_images for each in builders), sum(each.num_objects for each in builders))
    splits = {each.name: each.split(classes) for each in builders}
    return Labels(builders[0].root, layout, tuple(classes), splits, found, list(notes), builders[0].losses)
