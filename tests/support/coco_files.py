"""A tiny data set in COCO's form, made to be broken."""

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmdet.datasets import CocoDataset
from pycocotools import mask as mask_utils

WIDTH, HEIGHT = 40, 30
CLASSES = ('cat', 'dog', 'fox')


def rectangle(x: float, y: float, width: float, height: float) -> list[float]:
    """Return a rectangle as a polygon of COCO."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def compressed(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    """Return a rectangle as COCO's compressed run lengths."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order='F')
    mask[y : y + height, x : x + width] = 1
    rle = mask_utils.encode(mask)
    return dict(size=list(rle['size']), counts=rle['counts'].decode())


def coco_content() -> dict[str, Any]:
    """Return three images with two objects each and one without any; every form of a mask occurs."""
    images = [
        dict(id=number, file_name=f'{number}.jpg', width=WIDTH, height=HEIGHT, license=1) for number in (3, 5, 8, 9)
    ]
    annotations = []
    for number, image_id in enumerate((3, 3, 5, 5, 8, 8)):
        box = [2 + number, 3, 12, 10 + number]
        annotation = dict(
            id=100 + number, image_id=image_id, category_id=(1, 2, 4)[number % 3], bbox=box,
            area=box[2] * box[3], iscrowd=0, segmentation=[rectangle(*box)],
        )  # fmt: skip
        annotations.append(annotation)
    annotations[1]['segmentation'].append(rectangle(20, 20, 5, 5))
    annotations[3]['segmentation'] = compressed(*annotations[3]['bbox'])
    annotations[5].update(iscrowd=1, segmentation=dict(size=[HEIGHT, WIDTH], counts=[100, 150, WIDTH * HEIGHT - 250]))
    categories = [dict(id=number, name=name) for number, name in zip((1, 2, 4), CLASSES, strict=True)]
    return dict(info={}, images=images, annotations=annotations, categories=categories)


def picture(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return pixels that compress like those of a photograph."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def encoded(extension: str = '.jpg', pixels: np.ndarray | None = None) -> bytes:
    return cv2.imencode(extension, picture() if pixels is None else pixels)[1].tobytes()


def write_set(folder: Path, content: dict[str, Any] | None = None) -> Path:
    """Write a data set and return the path of its annotation file; the images are in ``images`` beside it."""
    content = coco_content() if content is None else content
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    for image in content['images']:
        (folder / 'images' / image['file_name']).write_bytes(encoded())
    file = folder / 'annotations.json'
    file.write_text(json.dumps(content))
    return file


def coco_dataset(file: Path, kind: type = CocoDataset, **arguments: Any) -> CocoDataset:
    """Build a dataset of mmdet on an annotation file, without what pycocotools prints."""
    arguments = dict(metainfo=dict(classes=CLASSES), serialize_data=False) | arguments
    with contextlib.redirect_stdout(io.StringIO()):
        return kind(ann_file=str(file), data_prefix=dict(img=str(file.parent / 'images')), **arguments)


def num_loaded(file: Path) -> int:
    """Return the number of objects that mmdet loads from an annotation file."""
    return sum(len(info['instances']) for info in coco_dataset(file).data_list)


def changed(change: Any) -> dict[str, Any]:
    """Return the content with ``change`` called on it."""
    content = copy.deepcopy(coco_content())
    change(content)
    return content
