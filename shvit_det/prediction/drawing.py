"""Pictures with masks, boxes, names and scores that can be read in a thumbnail and in twelve megapixels.

mmdet's visualizer draws lines of one width in pixels whatever the size of the picture, and labels over each other. Here
lines and letters grow with the picture, and a label moves to where it covers no other.
"""

import colorsys
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..common.log import warn
from .masks import Crop, crop_of

Picture = NDArray[np.uint8]  # (H, W, 3), blue, green, red
Color = tuple[int, int, int]  # red, green, blue

SMALL = 400  # pixels on the longer side below which a picture is enlarged
OPACITY = 0.45  # of masks
GROWTH = 0.75  # lines and letters grow slower than the picture
LINE_WIDTH, FONT_SIZE, SMALLEST_FONT = 2.0, 15.0, 9  # pixels; the first two in a picture of 640x480
FONT_PER_OBJECT = 0.5  # the largest height of letters, over the median of the objects' shorter sides
LABEL_SHARE = 0.1  # of the picture that labels may cover before letters become smaller
LETTERS = 12  # in a usual label
LETTER_WIDTH = 0.9  # of a usual letter with its share of the label's height, over the square of its size
BRIGHT = 0.45 * 255  # the luminance of a colour from which on letters on it are black
FONT_FILE = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / 'DejaVuSans.ttf'
UNUSUAL = re.compile('bold|black|italic|oblique|light|thin|heavy|condensed|mono', re.IGNORECASE)  # styles of fonts


class Style(NamedTuple):
    """The width of lines and the height of letters, in pixels."""

    line: int
    font: int

    @classmethod
    def of(cls, height: int, width: int, boxes: NDArray[Any]) -> 'Style':
        """Return the style for a picture and the boxes in it: finer for small boxes and for many."""
        growth = (math.sqrt(height * width) / math.sqrt(640 * 480)) ** GROWTH
        line, font = LINE_WIDTH * growth, FONT_SIZE * growth
        if len(boxes):
            median = float(np.median((boxes[:, 2:] - boxes[:, :2]).min(1)))
            crowding = len(boxes) * LETTERS * LETTER_WIDTH * font**2 / (LABEL_SHARE * height * width)
            line = min(line, max(0.03 * median, 0.4 * line))
            font = min(font, max(FONT_PER_OBJECT * median, 0.6 * font), max(0.5 * font, font / math.sqrt(crowding)))
        return cls(max(1, round(line)), max(SMALLEST_FONT, round(font)))


def class_colors(palette: Any, number: int) -> tuple[Color, ...]:
    """Return a colour for each class, at least one: the palette's if it has enough, else hues far from each other."""
    number = max(number, 1)
    if isinstance(palette, Sequence) and not isinstance(palette, str) and len(palette) >= number:
        try:
            return tuple((int(red), int(green), int(blue)) for red, green, blue in palette[:number])
        except (TypeError, ValueError):
            pass
    colors = []
    for index in range(number):
        lightness, saturation = ((0.5, 0.9), (0.62, 0.8), (0.4, 0.95))[index // 8 % 3]
        red, green, blue = colorsys.hls_to_rgb((0.97 + index * 0.618034) % 1, lightness, saturation)  # golden ratio
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colors)


def draw(
    picture: Picture,
    boxes: NDArray[Any],
    labels: NDArray[Any],
    scores: NDArray[Any] | None,
    masks: Any,
    names: Sequence[str],
    colors: Sequence[Color],
) -> Picture:
    """Return a copy of a picture with objects drawn into it, those with higher scores over the others.

    Args:
        picture: Blue, green, red.
        boxes: Left, top, right, bottom in pixels.
        labels: Indices into ``names`` and ``colors``.
        scores: 0 to 1; None for annotations, of which smaller ones are drawn over larger ones.
        masks: True on the object, an array or :class:`.CroppedMasks`; None for detectors without masks.
        names: Of the classes; a label without one is drawn as its number.
        colors: Red, green, blue for each class.

    Shapes:
        picture (H, W, 3), boxes (N, 4), labels and scores (N,), masks (N, H, W) -> (H * k, W * k, 3), where k is 1
        unless the picture is smaller than 400 pixels.
    """
    factor = max(1, math.ceil(SMALL / max(picture.shape[:2])))
    height, width = (side * factor for side in picture.shape[:2])
    canvas = cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    style = Style.of(height, width, boxes * factor)
    rectangles = np.rint(boxes * factor).clip(0, np.array([width, height, width, height]) - 1).astype(int)
    paints = [tuple(reversed(colors[int(label) % len(colors)])) for label in labels]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    order = np.argsort(-areas if scores is None else scores, kind='stable')
    if masks is not None:
        original = canvas.copy()
        for index in order:
            _paint_mask(canvas, original, crop_of(masks, index), paints[index], factor, style)
    for index in order:
        left, top, right, bottom = rectangles[index].tolist()
        thickness = style.line if masks is None else max(1, round(style.line / 2))
        cv2.rectangle(canvas, (left, top), (right, bottom), paints[index], thickness, cv2.LINE_AA)
    taken, shown = np.zeros((0, 4), int), shown_names(tuple(names))
    for index in order[::-1]:
        label = int(labels[index])
        name = shown[label] if label < len(shown) else f'class {label}'
        score = '' if scores is None else f'{scores[index]:.2f}'
        for text in filter(None, (f'{name} {score}'.strip(), score)):
            place = _place_of_label(text, rectangles[index], rectangles, taken, canvas, style)
            if place is not None:
                _write(canvas, text, place, paints[index], style)
                taken = np.concatenate([taken, place[None]])
                break
    return canvas


def draw_lines(picture: Picture, lines: Sequence[str]) -> Picture:
    """Return a copy of a picture with lines of text in its upper left corner, enlarged as :func:`draw` does it."""
    canvas = draw(picture, np.zeros((0, 4)), np.zeros(0), None, None, (), ())
    font, top = Style.of(canvas.shape[0], canvas.shape[1], np.zeros((0, 4))).font, 0
    for line in lines:
        letters = label_image(line, font)[: canvas.shape[0] - top, : canvas.shape[1]]
        canvas[top : top + letters.shape[0], : letters.shape[1]] = letters[..., None]
        top += letters.shape[0]
    return canvas


def _paint_mask(canvas: Picture, original: Picture, crop: Crop, paint: Color, factor: int, style: Style) -> None:
    """Tint the pixels of a mask and draw its outline, in place; ``original`` keeps overlaps from mixing."""
    if not crop.mask.size:
        return
    left, top, right, bottom = crop.box
    part = crop.mask.astype(np.uint8)
    if factor > 1:
        size = (part.shape[1] * factor, part.shape[0] * factor)
        part = (cv2.resize(part * 255, size, interpolation=cv2.INTER_LINEAR) > 127).astype(np.uint8)
    where = np.s_[top * factor : bottom * factor, left * factor : right * factor]
    tinted = (1 - OPACITY) * np.arange(256)[None, :, None] + OPACITY * np.array(paint)  # of every value of a channel
    cv2.copyTo(cv2.LUT(original[where], tinted.astype(np.uint8)), part, canvas[where])
    outlines, _ = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    offset = (left * factor, top * factor)
    cv2.drawContours(canvas, outlines, -1, paint, max(1, round(style.line * 0.75)), cv2.LINE_AA, offset=offset)


def _place_of_label(
    text: str, box: NDArray[Any], boxes: NDArray[Any], taken: NDArray[Any], canvas: Picture, style: Style
) -> NDArray[Any] | None:
    """Return the rectangle for a label at its box, where it covers no other label and least of all boxes, if any."""
    height, width = label_image(text, style.font).shape
    room = np.array([canvas.shape[1] - width, canvas.shape[0] - height])
    margin = style.line // 2
    left, top, right, bottom = (box + [-margin, -margin, margin + 1, margin + 1]).tolist()
    corners = [(x, y) for y in (top - height, top, bottom) for x in (left, right - width)]
    corners += [(left, bottom - height), (right, top), (left - width, top)]
    best, least = None, math.inf
    for number, corner in enumerate(corners):
        start = np.minimum(np.maximum(corner, 0), room)
        rectangle = np.concatenate([start, start + [width, height]])
        if start.min() < 0 or _overlaps(rectangle, taken).any():
            continue
        hidden = _overlaps(rectangle, boxes).sum() + 0.02 * number * height * width  # the first places are preferred
        if hidden < least:
            best, least = rectangle, hidden
    return best


def _overlaps(rectangle: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Return the areas that a rectangle shares with others, (4,) and (N, 4) -> (N,)."""
    sides = np.minimum(others[:, 2:], rectangle[2:]) - np.maximum(others[:, :2], rectangle[:2])
    return sides.clip(0).prod(1)


def _write(canvas: Picture, text: str, place: NDArray[Any], paint: Color, style: Style) -> None:
    """Write a label on a ground of the object's colour, in place, in black or white, whichever is readable on it."""
    left, top, right, bottom = place
    alpha = label_image(text, style.font)[..., None] / 255
    letters = 0 if np.dot(paint, (0.114, 0.587, 0.299)) > BRIGHT else 255
    canvas[top:bottom, left:right] = (np.array(paint) * (1 - alpha) + letters * alpha).astype(np.uint8)


@lru_cache(maxsize=8)
def shown_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of classes as they are drawn.

    A mark stands in place of characters that are not printable, such as line ends. A name in a script of which no font
    is installed would be a row of boxes: it is drawn as its number, and the log says so.
    """
    printable = [
        ''.join(char if char.isprintable() else '\N{REPLACEMENT CHARACTER}' for char in name) for name in names
    ]
    without_font = {label: name for label, name in enumerate(printable) if font_file(name) is None}
    if without_font:
        number, label = len(without_font), next(iter(without_font))
        warn(
            f'no font here has the letters of {number} of the {len(names)} class names, {names[label]!r} for instance, '
            f'which is drawn as "class {label}": install a font of that script, such as Noto Sans, to see the names'
        )
    return tuple(f'class {label}' if label in without_font else name for label, name in enumerate(printable))


@lru_cache(maxsize=512)
def label_image(text: str, size: int) -> NDArray[np.uint8]:
    """Return how much of each pixel of a label its letters cover, 0 to 255, with a margin around them."""
    other = font_file(text) or FONT_FILE
    parts = [
        (''.join(letters), _font(FONT_FILE if is_ours else other, size))
        for is_ours, letters in groupby(text, lambda letter: ord(letter) in letters_of(FONT_FILE))
    ]
    ascent, descent = (max(heights) for heights in zip(*(font.getmetrics() for _, font in parts), strict=True))
    margin = max(2, size // 5)
    width = sum(font.getlength(part) for part, font in parts)
    image = Image.new('L', (math.ceil(width) + 2 * margin, ascent + descent + margin // 2))
    left = float(margin)
    for part, font in parts:
        ImageDraw.Draw(image).text((left, margin // 4 + ascent), part, fill=255, font=font, anchor='ls')
        left += font.getlength(part)
    return np.asarray(image)


@lru_cache(maxsize=512)
def font_file(text: str) -> Path | None:
    """Return a font for those letters of a text that ours lacks, among the installed ones; None if there is none."""
    letters = set(map(ord, text)) - letters_of(FONT_FILE)
    if not letters:
        return FONT_FILE
    return next((file for file in installed_fonts() if letters <= letters_of(file)), None)


@lru_cache(maxsize=1)
def installed_fonts() -> list[Path]:
    """Return the files of fonts on this machine, upright ones of usual weight first."""
    files = [Path(file) for file in findSystemFonts() if 'lastresort' not in file.lower()]  # which has boxes for all
    return sorted(files, key=lambda file: (bool(UNUSUAL.search(file.stem)), file.name))


@lru_cache(maxsize=16)
def letters_of(file: Path) -> frozenset[int]:
    """Return the code points that a font can draw; none for one that has pictures of one size, such as emoji."""
    try:
        _font(file, SMALLEST_FONT)
        return frozenset(FT2Font(str(file)).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@lru_cache(maxsize=16)
def _font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(file), size)
