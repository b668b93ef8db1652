"""The predictions as a file in COCO's format, written as they come."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from ..common.atomic_files import PART, partial_path, publish
from ..version import __version__

IMAGES = b'\n], "images": [\n'
END = b'\n]}\n'


class ResultsFile:
    """A data set in COCO's format whose annotations have scores; whatever ends a run, it holds what was predicted.

    ``categories`` are the detector's classes with ids from 1, ``images`` has what was predicted, ``annotations`` what
    was found. Annotations are written at once, so that a long video takes no memory.

    Until it is closed there are two parts beside it, both written to the end after every picture: the annotations, and
    the images, which come last in the whole file. The second part is deleted when the disk has no other room for them
    there. A process that is killed leaves both parts.

    Args:
        path: The file. One that is there is replaced when this is closed, unless nothing was predicted.
        classes: Names by label.
        info: What else should stand under ``info``.
    """

    def __init__(self, path: Path, classes: tuple[str, ...], info: dict[str, Any]) -> None:
        categories = [dict(id=number, name=name) for number, name in enumerate(classes, start=1)]
        head = dict(info=dict(description='predictions', shvit_det=__version__, **info), categories=categories)
        start = json.dumps(head)[:-1].encode() + b', "annotations": ['
        self.path, self.is_saved = path, False
        self.annotations = Part(partial_path(path), start)
        try:
            self.images = Part(
                path.with_name(f'{path.name}.images{PART}'), IMAGES + b'   '
            )  # with it, as long as in the file
        except OSError:
            self.annotations.delete()
            raise
        # what is whole: the image, the number of annotations after it, and where the two parts end
        self.entries: list[tuple[dict[str, Any], int, int, int]] = []

    @property
    def num_annotations(self) -> int:
        return self.entries[-1][1] if self.entries else 0

    def add(self, image: dict[str, Any], result: Any, score: float) -> None:
        """Add a picture and what was found in it: both, or after an error neither.

        Args:
            image: Its entry: ``id``, ``file_name``, ``width``, ``height``, and what else is known.
            result: A ``DetDataSample``.
            score: Detections below are left out.
        """
        found = result.pred_instances
        found = found[found.scores >= score].numpy()
        number = self.num_annotations
        lines = [
            json.dumps(annotation_of(found, index, image['id'], number + index + 1)) for index in range(len(found))
        ]
        text = ''.join((',\n' if number + index else '\n') + line for index, line in enumerate(lines))
        _, _, annotations_end, images_end = self.entries[-1] if self.entries else (None, 0, None, None)
        annotations_end = self.annotations.write(text.encode(), annotations_end)
        images_end = self.images.write(json.dumps(image).encode() + b',\n', images_end)
        self.entries.append((image, number + len(lines), annotations_end, images_end))

    def close(self) -> None:
        """Write the rest and give the file its name; where there is no room, without the last pictures."""
        while True:
            images = sorted((image for image, *_ in self.entries), key=lambda image: image['id'])
            end = self.entries[-1][2] if self.entries else None
            try:
                self.annotations.write(IMAGES + ',\n'.join(map(json.dumps, images)).encode() + END, end)
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
        """Close, whatever has happened; where nothing was predicted, an earlier file stays."""
        if self.entries or (kind is None and not self.path.exists()):
            self.close()
        else:
            self.annotations.delete()
            self.images.delete()


class Part:
    """A file that is written at places of the caller's choice, at once.

    Args:
        path: The file.
        start: What it begins with.
    """

    def __init__(self, path: Path, start: bytes) -> None:
        self.path, self.start = path, len(start)
        self.file = path.open('wb', buffering=0)  # a buffer would fail once more when it is closed
        try:
            self.write(start, 0)
        except OSError:
            self.delete()
            raise

    def write(self, content: bytes, place: int | None) -> int:
        """Write at a place, None being after the start, and cut off what comes behind; return where it ends."""
        place = self.start if place is None else place
        self.file.seek(place)
        self.file.truncate()
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        return place + len(content)

    def delete(self) -> None:
        self.file.close()
        self.path.unlink(missing_ok=True)


def annotation_of(found: Any, index: int, image_id: int, number: int) -> dict[str, Any]:
    """Return an entry of the annotations: one of the objects that were found in a picture."""
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
        encoded = mask_utils.encode(np.asfortranarray(found.masks[index], dtype=np.uint8))
        annotation['area'] = int(mask_utils.area(encoded))
        annotation['segmentation'] = dict(size=encoded['size'], counts=encoded['counts'].decode())
    return annotation
