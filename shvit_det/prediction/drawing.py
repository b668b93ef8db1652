"""Pictures with masks, boxes, names and scores that can be read in a thumbnail and in twelve megapixels.

mmdet's visualizer draws with matplotlib: its lines and letters have one width in pixels whatever the size of the
picture, and labels cover each other. Here both grow with the picture, and a label moves to where it covers none.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]
Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom

SMALL = 400  # pixels on the longer side below which a picture is enlarged
OPACITY = 0.45  # of masks
GROWTH = 0.75  # lines and letters grow slower than the picture
LINE_WIDTH, FONT_SIZE, SMALLEST_FONT = 2.0, 15.0, 9  # pixels; the first two in a picture of 640x480
FONT_PER_OBJECT = 0.5  # letters at most this high, compared with the median of the objects' shorter sides
LABEL_SHARE = 0.1  # of the picture that labels may cover before letters become smaller
LETTERS = 12  # in a usual label
FONT_FILE = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / 'DejaVuSans.ttf'


@dataclass(frozen=True)
class Style:
    """How thick lines and how high letters are, in pixels."""

    line: int
    font: int

    @classmethod
    def of(cls, height: int, width: int, boxes: NDArray[Any]) -> 'Style':
        """Choose for a picture and the boxes in it; small ones and many get finer lines and smaller letters."""
        growth = (math.sqrt(height * width) / math.sqrt(640 * 480)) ** GROWTH
        line, font = LINE_WIDTH * growth, FONT_SIZE * growth
        if len(boxes):
            median = float(np.median((boxes[:, 2:] - boxes[:, :2]).min(1)))
            crowding = len(boxes) * LETTERS * 0.9 * font**2 / (LABEL_SHARE * height * width)
            line = min(line, max(0.03 * median, 0.4 * line))
            font = min(font, max(FONT_PER_OBJECT * median, 0.6 * font), max(0.5 * font, font / math.sqrt(crowding)))
        return cls(max(1, round(line)), max(SMALLEST_FONT, round(font)))


def draw(
    picture: Picture,
    boxes: NDArray[Any],
    labels: NDArray[Any],
    scores: NDArray[Any],
    masks: NDArray[Any] | None,
    names: Sequence[str],
    colors: Sequence[Color],
) -> Picture:
    """Return a copy of a picture with objects drawn into it, those with higher scores over the others.

    Args:
        picture: Blue, green, red.
        boxes: Left, top, right, bottom in pixels.
        labels: Indices into ``names`` and ``colors``.
        scores: 0 to 1.
        masks: True on the object; None for detectors without masks.
        names: Of the classes; a label without one is drawn as its number.
        colors: Red, green, blue for each class.

    Shapes:
        picture (H, W, 3), boxes (N, 4), labels and scores (N,), masks (N, H, W) -> (H * k, W * k, 3), where k is 1
        unless the picture is smaller than 400 pixels.
    """
    factor = max(1, math.ceil(SMALL / max(picture.shape[:2])))
    height, width = (side * factor for side in picture.shape[:2])
    canvas = picture.copy()
    if factor > 1:
        canvas = cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    style = Style.of(height, width, boxes * factor)
    rectangles = np.array([corners(box * factor, height, width) for box in boxes]).reshape(-1, 4)
    paints = [tuple(reversed(colors[int(label) % len(colors)])) for label in labels]
    order = np.argsort(scores, kind='stable')
    if masks is not None:
        original = canvas.copy()
        for index in order:
            paint_mask(canvas, original, masks[index], paints[index], factor, style)
    for index in order:
        left, top, right, bottom = rectangles[index].tolist()
        thickness = style.line if masks is None else max(1, round(style.line / 2))
        cv2.rectangle(canvas, (left, top), (right, bottom), paints[index], thickness, cv2.LINE_AA)
    taken = np.zeros((0, 4), int)
    for index in order[::-1]:
        label = int(labels[index])
        name = printable(names[label]) if label < len(names) else f'class {label}'
        shown = [f'{name} {scores[index]:.2f}', f'{scores[index]:.2f}']
        place = place_of_label(shown, rectangles[index], rectangles, taken, (height, width), style)
        if place is not None:
            text, rectangle = place
            write(canvas, text, rectangle, paints[index], style)
            taken = np.concatenate([taken, [rectangle]])
    return canvas


def printable(name: str) -> str:
    """Return a name with a mark in place of what is no letter: line ends, and signs that text is laid out by."""
    return ''.join(char if char.isprintable() else '\N{REPLACEMENT CHARACTER}' for char in name)


def corners(box: NDArray[Any], height: int, width: int) -> Rectangle:
    """Return the pixels of a box's corners, within the picture."""
    x = np.rint(box[[0, 2]]).clip(0, width - 1)
    y = np.rint(box[[1, 3]]).clip(0, height - 1)
    return int(x[0]), int(y[0]), int(x[1]), int(y[1])


def paint_mask(canvas: Picture, original: Picture, mask: NDArray[Any], paint: Color, factor: int, style: Style) -> None:
    """Tint the pixels of a mask, in place, from the original ones so that overlaps stay clear; and draw its outline."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    part = mask[top:bottom, left:right].astype(np.uint8)
    if factor > 1:
        size = (part.shape[1] * factor, part.shape[0] * factor)
        part = (cv2.resize(part * 255, size, interpolation=cv2.INTER_LINEAR) > 127).astype(np.uint8)
    where = np.s_[top * factor : bottom * factor, left * factor : right * factor]
    inside = part.astype(bool)
    tinted = (1 - OPACITY) * original[where][inside] + OPACITY * np.array(paint)
    canvas[where][inside] = tinted.astype(np.uint8)
    outlines, _ = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    offset = (int(left * factor), int(top * factor))
    cv2.drawContours(canvas, outlines, -1, paint, max(1, round(style.line * 0.75)), cv2.LINE_AA, offset=offset)


def place_of_label(
    texts: Sequence[str],
    box: NDArray[Any],
    boxes: NDArray[Any],
    taken: NDArray[Any],
    size: tuple[int, int],
    style: Style,
) -> tuple[str, Rectangle] | None:
    """Return the first of the texts for which there is room at a box, and its place; None if there is room for none.

    Of the places that no other label has, it is the one that hides least of all boxes.

    Args:
        texts: In order of preference.
        box: The box that the label belongs to.
        boxes: All boxes, (N, 4).
        taken: The labels so far, (M, 4).
        size: Height and width of the picture.
        style: The size of the letters.
    """
    height, width = size
    for text in texts:
        label_height, label_width = written(text, style.font).shape
        best, least = None, math.inf
        for number, (x, y) in enumerate(places(box.tolist(), label_height, label_width, style.line // 2)):
            left, top = min(max(x, 0), width - label_width), min(max(y, 0), height - label_height)
            rectangle = (left, top, left + label_width, top + label_height)
            if left < 0 or top < 0 or overlaps(rectangle, taken).any():
                continue
            hidden = float(overlaps(rectangle, boxes).sum()) + 0.02 * number * label_height * label_width
            if hidden < least:
                best, least = rectangle, hidden
        if best is not None:
            return text, best
    return None


def overlaps(rectangle: Rectangle, others: NDArray[Any]) -> NDArray[Any]:
    """Return the areas that a rectangle shares with others, (N, 4) -> (N,)."""
    wide = np.minimum(others[:, 2], rectangle[2]) - np.maximum(others[:, 0], rectangle[0])
    high = np.minimum(others[:, 3], rectangle[3]) - np.maximum(others[:, 1], rectangle[1])
    return wide.clip(0) * high.clip(0)


def write(canvas: Picture, text: str, rectangle: Rectangle, paint: Color, style: Style) -> None:
    """Write a text on a ground of the object's colour, in place, in black or white, whichever can be read on it."""
    left, top, right, bottom = rectangle
    alpha = written(text, style.font)[..., None] / 255
    letters = 0 if luminance(paint) > 0.45 else 255
    canvas[top:bottom, left:right] = (np.array(paint) * (1 - alpha) + letters * alpha).astype(np.uint8)


def places(box: Sequence[int], height: int, width: int, margin: int) -> Iterator[tuple[int, int]]:
    """Yield left and top of where a label may stand at a box: above, within, below, on both sides."""
    left, top, right, bottom = box
    left, right = left - margin, right + margin + 1
    top, bottom = top - margin, bottom + margin + 1
    for x in (left, right - width):
        yield x, top - height
    for x in (left, right - width):
        yield x, top
    for x in (left, right - width):
        yield x, bottom
    yield left, bottom - height
    yield right, top
    yield left - width, top


def luminance(paint: Color) -> float:
    """Return how bright blue, green and red look together, 0 to 1."""
    blue, green, red = paint
    return (0.114 * blue + 0.587 * green + 0.299 * red) / 255


@lru_cache(maxsize=8)
def font_of(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT_FILE), size)


@lru_cache(maxsize=512)
def written(text: str, size: int) -> NDArray[np.uint8]:
    """Return how much of each pixel letters cover, 0 to 255, with a margin around them."""
    font = font_of(size)
    ascent, descent = font.getmetrics()
    margin = max(2, size // 5)
    image = Image.new('L', (math.ceil(font.getlength(text)) + 2 * margin, ascent + descent + margin // 2))
    ImageDraw.Draw(image).text((margin, margin // 4), text, fill=255, font=font)
    return np.asarray(image)
