"""A picture of a COCO-format split with its ground truth, to look at."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

COLORS = ((70, 70, 255), (60, 190, 40), (255, 130, 30), (0, 190, 255), (230, 60, 220))  # B, G, R
FONT = cv2.FONT_HERSHEY_SIMPLEX


def _decode(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    rle = mask_utils.frPyObjects(segmentation, height, width)
    return mask_utils.decode(mask_utils.merge(rle) if isinstance(rle, list) else rle).astype(bool)


def _draw_mask(cell: NDArray[np.uint8], annotation: dict[str, Any], color: tuple[int, int, int], zoom: int) -> None:
    height, width = cell.shape[0] // zoom, cell.shape[1] // zoom
    mask = np.kron(_decode(annotation['segmentation'], height, width), np.ones((zoom, zoom), bool))
    cell[mask] = (0.7 * cell[mask] + 0.3 * np.array(color)).astype(np.uint8)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(cell, contours, -1, color, 2, cv2.LINE_AA)


def _draw_box(
    cell: NDArray[np.uint8], annotation: dict[str, Any], name: str, color: tuple[int, int, int], zoom: int
) -> None:
    label = f'{name} crowd' if annotation['iscrowd'] else name
    x, y, box_width, box_height = (round(zoom * value) for value in annotation['bbox'])
    cv2.rectangle(cell, (x, y), (x + box_width - 1, y + box_height - 1), color, 1)
    (text_width, text_height), _ = cv2.getTextSize(label, FONT, 0.42, 1)
    x = min(x, cell.shape[1] - text_width - 7)
    y = max(y, text_height + 7)
    cv2.rectangle(cell, (x, y - text_height - 7), (x + text_width + 6, y), color, cv2.FILLED)
    cv2.putText(cell, label, (x + 3, y - 4), FONT, 0.42, (255, 255, 255), 1, cv2.LINE_AA)


def draw_preview(
    root: str | Path, file: str | Path, *, split: str = 'val2017', columns: int = 6, rows: int = 4, zoom: int = 2
) -> None:
    """Write a PNG of the first images of a split, all of one size, with their annotations.

    Raises:
        OSError: the split cannot be read or the file cannot be written.
    """
    root = Path(root)
    annotation_file = root / 'annotations' / f'instances_{split}.json'
    content = json.loads(annotation_file.read_text(encoding='utf-8'))
    looks = {
        category['id']: (category['name'], COLORS[number % len(COLORS)])
        for number, category in enumerate(content['categories'])
    }
    shown = content['images'][: rows * columns]
    height, width = shown[0]['height'] * zoom, shown[0]['width'] * zoom
    sheet = np.full((-(-len(shown) // columns) * height, columns * width, 3), 255, np.uint8)
    for number, image in enumerate(shown):
        top, left = number // columns * height, number % columns * width
        cell = sheet[top : top + height, left : left + width]
        encoded = np.frombuffer((root / split / image['file_name']).read_bytes(), np.uint8)
        pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        assert pixels is not None  # the set was drawn by us
        cell[:] = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
        annotations = [annotation for annotation in content['annotations'] if annotation['image_id'] == image['id']]
        for annotation in annotations:
            _draw_mask(cell, annotation, looks[annotation['category_id']][1], zoom)
        for annotation in annotations:
            _draw_box(cell, annotation, *looks[annotation['category_id']], zoom)
        cv2.rectangle(cell, (0, 0), (width - 1, height - 1), (255, 255, 255), 2)
    Path(file).write_bytes(cv2.imencode('.png', sheet)[1].tobytes())
