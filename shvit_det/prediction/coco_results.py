"""Predictions as a file in COCO's format, written as they come."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from ..common.atomic_files import PART, partial_path, publish
from ..version import __version__
from .masks import crop_of, polygons_of_crop, rle_of

IMAGES = b'\n], "images": [\n'
END = b'\n]}\n'


class PartFile:
    """A file whose end is written again and again, without a buffer, which would fail once more when it is closed."""

    def __init__(self, path: Path, start: bytes) -> None:
        self.path, self.file = path, path.open('wb', buffering=0)
        try:
            self.start = self.write(start, 0)
        except OSError:
            self.delete()
            raise

    def write(self, content: bytes, place: int) -> int:
        """Replace everything from a place on by some content; return where it ends."""
        self.file.seek(place)
        self.file.truncate()
        remainder = memoryview(content)
        try:
            while remainder:
                remainder = remainder[self.file.write(remainder) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        return place + len(content)

    def delete(self) -> None:
        self.file.close()
        self.path.unlink(missing_ok=True)


def _annotation(found: Any, index: int, image_id: int, number: int, polygons: bool) -> dict[str, Any]:
    """Return the entry of one detection."""
    left, top, right, bottom = found.bboxes[index].tolist()
    annotation: dict[str, Any] = dict(
        id=number,
        image_id=image_id,
        category_id=int(found.labels[index]) + 1,
        bbox=[round(value, 3) for value in (left, top, right - left, bottom - top)],
        score=round(float(found.scores[index]), 6),
        area=round((right - left) * (bottom - top), 3),
        iscrowd=0,
    )
    if 'masks' in found:
        crop = crop_of(found.masks, index)
        annotation['area'] = int(crop.mask.sum())
        outlines = polygons_of_crop(crop) if polygons else []
        annotation['segmentation'] = outlines or rle_of(crop, found.masks.shape[1:])
    return annotation


class Entry(NamedTuple):
    """An image of the results: its entry, the number of annotations after it, and where both parts end after it."""

    image: dict[str, Any]
    num_annotations: int
    annotations_end: int
    images_end: int


class ResultsFile:
    """A file in COCO's format whose annotations have scores. Whatever ends a run, the file has all earlier predictions.

    ``categories`` are the detector's classes with ids from 1, ``images`` the predicted pictures, ``annotations`` the
    objects found in them. Annotations are not held in memory.

    Until it is closed, the file exists as two parts, which are up to date after every picture: the annotations, and the
    images, with which the complete file ends. If the disk is full when it is closed, the second part is deleted to make
    room. A process that is killed leaves both parts.

    Args:
        path: The file. An earlier one is replaced when this one is closed, unless nothing was predicted.
        classes: The names of the classes by label.
        info: Further content of ``info``.
        polygons: Whether masks are polygons, with holes filled, in place of run lengths. A mask of less than 4 pixels,
            which has no polygon, stays in run lengths.
    """

    def __init__(self, path: Path, classes: tuple[str, ...], info: dict[str, Any], polygons: bool = False) -> None:
        categories = [dict(id=number, name=name) for number, name in enumerate(classes, start=1)]
        head = dict(info=dict(description='predictions', shvit_det=__version__, **info), categories=categories)
        self.path, self.is_saved, self.polygons = path, False, polygons
        self.entries: list[Entry] = []
        self.annotations = PartFile(partial_path(path), json.dumps(head)[:-1].encode() + b', "annotations": [')
        try:  # three spaces more make this part as long as its content in the complete file
            self.images = PartFile(path.with_name(f'{path.name}.images{PART}'), IMAGES + b'   ')
        except OSError:
            self.annotations.delete()
            raise
        self.start = Entry({}, 0, self.annotations.start, self.images.start)

    @property
    def last(self) -> Entry:
        return self.entries[-1] if self.entries else self.start

    def add(self, image: dict[str, Any], result: Any, score: float) -> None:
        """Add a picture and its detections: both, or after an error neither.

        Args:
            image: Its entry: ``id``, ``file_name``, ``width``, ``height``, and what else is known.
            result: A ``DetDataSample``.
            score: Detections with a lower score are left out.
        """
        found = result.pred_instances
        found = found[found.scores >= score].numpy()
        last, number = self.last, self.last.num_annotations
        lines = [
            json.dumps(_annotation(found, index, image['id'], number + index + 1, self.polygons))
            for index in range(len(found))
        ]
        text = ''.join((',\n' if number + index else '\n') + line for index, line in enumerate(lines))
        annotations_end = self.annotations.write(text.encode(), last.annotations_end)
        images_end = self.images.write(json.dumps(image).encode() + b',\n', last.images_end)
        self.entries.append(Entry(image, number + len(lines), annotations_end, images_end))

    def close(self) -> None:
        """Complete the file and give it its name; without the last pictures where the disk has no room for them."""
        while True:
            images = sorted((entry.image for entry in self.entries), key=lambda image: image['id'])
            content = IMAGES + ',\n'.join(map(json.dumps, images)).encode() + END
            try:
                self.annotations.write(content, self.last.annotations_end)
                break
            except OSError:
                if self.images.path.exists():
                    self.images.delete()
                elif self.entries:
                    self.entries = self.entries[: len(self.entries) * 9 // 10]
                else:
                    raise
        self.annotations.file.close()
        publish(self.annotations.path, self.path)
        self.is_saved = True
        self.images.delete()

    def __enter__(self) -> 'ResultsFile':
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file, whatever has happened; where nothing was predicted, an earlier file stays."""
        if self.entries or (kind is None and not self.path.exists()):
            self.close()
        else:
            self.annotations.delete()
            self.images.delete()
