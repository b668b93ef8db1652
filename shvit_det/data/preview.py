"""A picture of the drawn sample set with its ground truth, to look at."""

import contextlib
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO

COLUMNS, ROWS, ZOOM = 6, 4, 2
COLORS = ((70, 70, 255), (60, 190, 40), (255, 130, 30), (0, 190, 255), (230, 60, 220))  # B, G, R


def draw_preview(root: Path, file: Path) -> None:
    """Write a PNG of the first images of a sample set's ``val2017`` with their annotations.

    Raises:
        OSError: If the set cannot be read or the file cannot be written.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(root / 'annotations' / 'instances_val2017.json'))
    shown = list(coco.imgs.values())[: ROWS * COLUMNS]
    height, width = shown[0]['height'] * ZOOM, shown[0]['width'] * ZOOM
    sheet = np.full((-(-len(shown) // COLUMNS) * height, COLUMNS * width, 3), 255, np.uint8)
    for number, image in enumerate(shown):
        top, left = number // COLUMNS * height, number % COLUMNS * width
        cell = sheet[top : top + height, left : left + width]
        pixels = cv2.imread(str(root / 'val2017' / image['file_name']))
        assert pixels is not None  # the set was drawn by us
        cell[:] = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
        for draw in (_draw_mask, _draw_name):
            for annotation in coco.imgToAnns[image['id']]:
                draw(cell, coco, annotation)
        cv2.rectangle(cell, (0, 0), (width - 1, height - 1), (255, 255, 255), 2)
    file.write_bytes(cv2.imencode('.png', sheet)[1].tobytes())


def _draw_mask(cell: NDArray[np.uint8], coco: COCO, annotation: dict[str, Any]) -> None:
    color = COLORS[list(coco.cats).index(annotation['category_id']) % len(COLORS)]
    mask = coco.annToMask(annotation).repeat(ZOOM, 0).repeat(ZOOM, 1)
    cell[mask > 0] = (0.7 * cell[mask > 0] + 0.3 * np.array(color)).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(cell, contours, -1, color, 2, cv2.LINE_AA)
    x, y, width, height = (round(ZOOM * value) for value in annotation['bbox'])
    cv2.rectangle(cell, (x, y), (x + width - 1, y + height - 1), color, 1)


def _draw_name(cell: NDArray[np.uint8], coco: COCO, annotation: dict[str, Any]) -> None:
    name = coco.cats[annotation['category_id']]['name'] + (' crowd' if annotation['iscrowd'] else '')
    x, y = (round(ZOOM * value) for value in annotation['bbox'][:2])
    place = (x + 3, max(y - 4, 12))
    for thickness, shade in ((3, (0, 0, 0)), (1, (255, 255, 255))):  # white with a black rim
        cv2.putText(cell, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, shade, thickness, cv2.LINE_AA)
