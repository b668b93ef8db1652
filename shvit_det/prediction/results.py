"""The predictions as a file in COCO's format, written as they come."""

import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from pycocotools import mask as mask_utils

from ..version import __version__


class ResultsFile:
    """A data set in COCO's format whose annotations have scores; it gets its name when it is whole.

    ``categories`` are the detector's classes with ids from 1, ``images`` has what was predicted, ``annotations`` what
    was found. Annotations are written at once, so that a long video takes no memory.

    Args:
        path: The file.
        classes: Names by label.
        info: What else should stand under ``info``.
    """

    def __init__(self, path: Path, classes: tuple[str, ...], info: dict[str, Any]) -> None:
        self.path = path
        self.part = path.with_name(f'{path.name}.part')
        self.images: list[dict[str, Any]] = []
        self.num_annotations = 0
        self.file: IO[str] = self.part.open('w', encoding='utf-8')
        categories = [dict(id=number, name=name) for number, name in enumerate(classes, start=1)]
        head = dict(info=dict(description='predictions', shvit_det=__version__, **info), categories=categories)
        self.file.write(json.dumps(head)[:-1] + ', "annotations": [')

    def add(self, image: dict[str, Any], result: Any, score: float) -> int:
        """Add a picture and what was found in it.

        Args:
            image: Its entry: ``id``, ``file_name``, ``width``, ``height``, and what else is known.
            result: A ``DetDataSample``.
            score: Detections below are left out.

        Returns:
            How many were found.
        """
        found = result.pred_instances
        found = found[found.scores >= score].numpy()
        for index in range(len(found)):
            left, top, right, bottom = found.bboxes[index].tolist()
            annotation: dict[str, Any] = dict(
                id=self.num_annotations + 1,
                image_id=image['id'],
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
            self.file.write((',\n' if self.num_annotations else '\n') + json.dumps(annotation))
            self.num_annotations += 1
        self.images.append(image)
        return len(found)

    def close(self) -> None:
        """Write the rest and give the file its name."""
        images = sorted(self.images, key=lambda image: image['id'])
        self.file.write('\n], "images": [\n' + ',\n'.join(map(json.dumps, images)) + '\n]}\n')
        self.file.close()
        self.part.replace(self.path)

    def __enter__(self) -> 'ResultsFile':
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close; what was predicted before an interruption is kept, what stood before a failure is not replaced."""
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.close()
        else:
            self.file.close()
            self.part.unlink(missing_ok=True)
