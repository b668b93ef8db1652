"""The images of the drawn sample set: which shapes each shows, what of them is visible, and how they are painted.

Every random choice comes from the generator that is passed in, so that an image depends on its seed only, and each
change here that changes a pixel needs a new ``GENERATOR_VERSION``. Images are float32 arrays (H, W, 3), RGB, 0 to 255.
Coordinates are COCO's: pixel i covers the interval from i to i + 1. Masks are drawn on a fine grid with
``SUPERSAMPLING`` cells along the side of a pixel: their mean is the anti-aliased coverage of a pixel, and their borders
are polygons of sub-pixel accuracy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

FloatArray = NDArray[Any]  # float32; the annotations of OpenCV and numpy know no more of their results
Mask = NDArray[np.bool_]  # (S, S) on the fine grid
Outline = NDArray[np.float64]  # (N, 2), x and y in pixels

SUPERSAMPLING = 4
SIMPLIFICATION = 0.3  # pixels that a polygon may be away from the border of its mask
SMALLEST_PART = 4.0  # square pixels; a smaller separate part of an object is dropped

SMALLEST_OBJECT = 36.0  # pixels across; what occlusion leaves of them is small by COCO's measure
LARGEST_OBJECT = 0.65  # share of the image's side: 125 pixels of 192, so that COCO's large occurs
MIN_VISIBLE = 0.6  # share of an object that must not be hidden
TRIES = 40  # places to try for an object before the image goes without it
EMPTY_EVERY = 50  # images; the eighth of so many has no object
CROWD_SIZE = 26  # shapes
ANY_HUE = 0.1  # share of the shapes whose colour says nothing about their category
HUE_SPREAD = 20.0  # degrees, the standard deviation around the hue of the category


def _star_shaped(radii: Sequence[float]) -> Outline:
    """Place points around the origin at equal angles and the given distances."""
    angles = np.arange(len(radii)) * (2 * np.pi / len(radii))
    return np.stack((np.cos(angles), np.sin(angles)), axis=1) * np.asarray(radii)[:, None]


def _cross(span: float, arm: float) -> Outline:
    """Return the twelve corners of a plus sign as wide as ``span``, with arms as thick as ``arm``."""
    corners = [np.array([(span, -arm), (span, arm), (arm, arm)]) / 2]
    for _ in range(3):
        corners.append(corners[-1] @ np.array([(0, 1), (-1, 0)]))  # a quarter turn
    return np.concatenate(corners)


# Outlines of size 1 around the origin, scaled to look equally large.
OUTLINES: dict[str, Outline] = {
    'disc': _star_shaped([0.5] * 72),
    'square': _star_shaped([0.64] * 4),
    'triangle': _star_shaped([0.69] * 3),
    'star': _star_shaped([0.66, 0.27] * 5),
    'cross': _cross(span=1.08, arm=0.36),
}
NAMES = list(OUTLINES)


def place_outline(name: str, center: tuple[float, float], size: float, angle: float) -> Outline:
    """Turn an outline by ``angle`` (radians), scale it and move it."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return OUTLINES[name] @ np.array([(cosine, sine), (-sine, cosine)]) * size + center


def _fine_points(outline: Outline) -> NDArray[np.int32]:
    return np.rint(outline * SUPERSAMPLING - 0.5).astype(np.int32)


def fill_outline(outline: Outline, height: int, width: int) -> Mask:
    """Fill an outline, cut at the border of an image of this size, on the fine grid."""
    mask = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    cv2.fillPoly(mask, [_fine_points(outline)], 1)
    return mask.astype(bool)


def coverage(mask: Mask) -> FloatArray:
    """Return how much of each pixel, 0 to 1, a mask covers. Shapes: the fine grid -> (H, W)."""
    height, width = (length // SUPERSAMPLING for length in mask.shape)
    return cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)


def has_hole(mask: Mask) -> bool:
    """Tell whether the background shows through a mask: COCO's polygons cannot say that."""
    _, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return hierarchy is not None and bool((hierarchy[0, :, 3] >= 0).any())


def trace_polygons(mask: Mask) -> list[list[float]]:
    """Trace the parts of a mask without holes: COCO's [x, y, x, y, ...], one list a part."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        corners = cv2.approxPolyDP(contour, SIMPLIFICATION * SUPERSAMPLING, closed=True)
        if len(corners) >= 3 and cv2.contourArea(corners) >= SMALLEST_PART * SUPERSAMPLING**2:
            points = (corners.reshape(-1).astype(np.float64) + 0.5) / SUPERSAMPLING
            polygons.append([round(float(value), 2) for value in points])
    return polygons


@dataclass
class Item:
    """An object of an image, or a crowd of them.

    Attributes:
        shape: What it covers within the image.
        visible: The part that no item in front hides.
        full_area: In cells of the fine grid, with what lies outside the image.
    """

    name: str
    outlines: list[Outline]
    shape: Mask
    visible: Mask
    full_area: float
    is_crowd: bool = False

    def may_be_left_with(self, visible: Mask) -> bool:
        """Tell whether a visible part is large enough, and without a hole, which polygons could not express."""
        if np.count_nonzero(visible) < MIN_VISIBLE * self.full_area:
            return False
        return self.is_crowd or not has_hole(visible)


def _random_object(rng: Generator, name: str, image_size: int) -> Item:
    """Choose an object's size, turn and place; its border may lie outside the image."""
    low, high = np.log(SMALLEST_OBJECT), np.log(LARGEST_OBJECT * image_size)
    size = float(np.exp(rng.uniform(low, high)))
    x, y = rng.uniform(0.35 * size, image_size - 0.35 * size, 2)
    outline = place_outline(name, (x, y), size, rng.uniform(0, 2 * np.pi))
    shape = fill_outline(outline, image_size, image_size)
    full_area = cv2.contourArea(outline.astype(np.float32)) * SUPERSAMPLING**2
    return Item(name, [outline], shape, shape, full_area)


def _random_crowd(rng: Generator, image_size: int) -> Item:
    """Choose a heap of small shapes of one category; the gaps between them belong to its region."""
    name = NAMES[rng.integers(len(NAMES))]
    center = rng.uniform(0.3, 0.7, 2) * image_size
    outlines = []
    for number in range(CROWD_SIZE):  # a sunflower's arrangement: dense, even, round
        distance, turn = 0.034 * image_size * (number + 0.5) ** 0.5, number * 2.4
        x, y = center + distance * np.array((np.cos(turn), np.sin(turn))) + rng.normal(0, 0.8, 2)
        size = rng.uniform(0.042, 0.062) * image_size
        outlines.append(place_outline(name, (x, y), size, rng.uniform(0, 2 * np.pi)))
    masks = [fill_outline(outline, image_size, image_size) for outline in outlines]
    gap = np.ones((round(0.03 * image_size) * SUPERSAMPLING + 1,) * 2, np.uint8)
    region = cv2.morphologyEx(np.any(masks, axis=0).astype(np.uint8), cv2.MORPH_CLOSE, gap)
    shape = region.astype(bool)
    return Item(name, outlines, shape, shape, float(np.count_nonzero(shape)), is_crowd=True)


def compose_image(rng: Generator, image_size: int, index: int) -> list[Item]:
    """Choose what the image number ``index`` of a split shows, back to front.

    The first image has the crowd, behind its objects. The category of an image's first object rotates with the index,
    so that any five images in a row without an empty one have all.
    """
    if index % EMPTY_EVERY == 7:
        return []
    items = [_random_crowd(rng, image_size)] if index == 0 else []
    names = [NAMES[index % len(NAMES)]]
    names += [NAMES[number] for number in rng.integers(len(NAMES), size=rng.integers(0, 4))]
    for name in names:
        for _ in range(TRIES):
            front = _random_object(rng, name, image_size)
            left = [item.visible & ~front.shape for item in items]
            if front.may_be_left_with(front.visible) and all(map(Item.may_be_left_with, items, left)):
                for item, visible in zip(items, left, strict=True):
                    item.visible = visible
                items.append(front)
                break
    return items


# Patterns: each fills a square with values between about 0 and 1.


def _value_noise(rng: Generator, size: int, cells: int) -> FloatArray:
    """Return smooth noise between 0 and 1 with about ``cells`` bumps along a side."""
    lattice = rng.random((cells + 1, cells + 1), dtype=np.float32)
    return cv2.resize(lattice, (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def _distance(size: int, angle: float) -> FloatArray:
    """Return how far each pixel lies along a direction (radians), in pixels."""
    axis = np.arange(size, dtype=np.float32) - size / 2
    return np.float32(np.cos(angle)) * axis + np.float32(np.sin(angle)) * axis[:, None]


def _waves(rng: Generator, size: int, period: float, angle: float) -> FloatArray:
    """Return bands with soft borders, -1 to 1."""
    phase = _distance(size, angle) * np.float32(2 * np.pi / period)
    return np.tanh(3 * np.sin(phase + np.float32(rng.uniform(0, 2 * np.pi))))


def _ramp(rng: Generator, size: int) -> FloatArray:
    return _distance(size, rng.uniform(0, 2 * np.pi)) / size + 0.5


def _clouds(rng: Generator, size: int) -> FloatArray:
    octaves = [_value_noise(rng, size, cells) / cells**0.5 for cells in (3, 7, 16, 36)]
    total = np.sum(octaves, axis=0)
    return (total - total.min()) / np.ptp(total)


def _stripes(rng: Generator, size: int) -> FloatArray:
    return _waves(rng, size, rng.uniform(7, 40), rng.uniform(0, 2 * np.pi)) / 2 + 0.5


def _checker(rng: Generator, size: int) -> FloatArray:
    period, angle = rng.uniform(18, 60), rng.uniform(0, 2 * np.pi)
    across = _waves(rng, size, period, angle + np.pi / 2)
    return _waves(rng, size, period, angle) * across / 2 + 0.5


def _speckle(rng: Generator, size: int) -> FloatArray:
    spots: FloatArray = (rng.random((size, size)) < rng.uniform(0.01, 0.05)).astype(np.float32)
    spots = cv2.GaussianBlur(spots, (0, 0), rng.uniform(0.9, 2.2))
    return 0.35 * _value_noise(rng, size, 4) + 0.65 * spots / spots.max()


Pattern = Callable[[Generator, int], FloatArray]
BACKGROUNDS: tuple[Pattern, ...] = (_ramp, _clouds, _stripes, _checker, _speckle)
TEXTURES: tuple[Pattern, ...] = (_ramp, _ramp, _clouds, _stripes)


def _rgb(hue: float, saturation: float, value: float) -> FloatArray:
    """Convert a colour, hue in degrees and the others 0 to 1, to RGB, 0 to 255. Shapes: (3,)."""
    pixel = np.array([[[hue % 360, np.clip(saturation, 0, 1), np.clip(value, 0, 1)]]], np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0] * 255


def _paint_background(rng: Generator, size: int) -> FloatArray:
    """Paint two muted colours in a random pattern under uneven light."""
    pattern = BACKGROUNDS[rng.integers(len(BACKGROUNDS))](rng, size)[..., None]
    hue, saturation, value = rng.uniform(0, 360), rng.uniform(0.04, 0.32), rng.uniform(0.35, 0.8)
    first = _rgb(hue, saturation, value)
    second = _rgb(
        hue + rng.uniform(-50, 50),
        saturation + rng.uniform(-0.1, 0.1),
        value + rng.choice((-1, 1)) * rng.uniform(0.06, 0.2),
    )
    light = 0.85 + 0.3 * _value_noise(rng, size, 3)[..., None]
    return (first + (second - first) * pattern) * light


def _object_color(rng: Generator, hue: float, surround: FloatArray) -> FloatArray:
    """Choose a colour near a hue that stands out from the colour below it. Shapes: (3,) -> (3,)."""
    candidates = [_rgb(rng.normal(hue, HUE_SPREAD), rng.uniform(0.35, 0.95), rng.uniform(0.3, 1)) for _ in range(4)]
    return next(
        (color for color in candidates if np.linalg.norm(color - surround) > 75),
        max(candidates, key=lambda color: float(np.linalg.norm(color - surround))),
    )


def paint_shape(rng: Generator, image: FloatArray, outline: Outline, hue: float) -> None:
    """Paint a shape of about a hue (degrees) with its shadow, texture and rim into an image, in place."""
    extent = float(np.ptp(outline, axis=0).max())
    reach = 5 + 0.2 * extent  # the shadow ends within it
    left, top = np.floor(outline.min(0) - reach).astype(int).clip(0)
    right, bottom = np.ceil(outline.max(0) + reach).astype(int)
    canvas = image[top:bottom, left:right]
    height, width = canvas.shape[:2]
    outline = outline - (left, top)
    mask = fill_outline(outline, height, width)
    alpha = coverage(mask)

    offset = rng.uniform(0.02, 0.06, 2) * extent
    moved = np.array([(1, 0, offset[0]), (0, 1, offset[1])])
    shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, moved, (width, height)), (0, 0), 0.8 + 0.03 * extent)
    canvas *= 1 - rng.uniform(0.25, 0.5) * shadow[..., None]

    color = _object_color(rng, hue, canvas[alpha > 0.5].mean(0))
    texture = TEXTURES[rng.integers(len(TEXTURES))](rng, max(height, width))[:height, :width]
    shade = 1 + rng.uniform(0.12, 0.4) * (texture - 0.5)
    rim_color = color * 0.55 if color.mean() > 95 else color * 0.45 + 140

    rim = np.zeros(mask.shape, np.uint8)
    cv2.polylines(rim, [_fine_points(outline)], True, 1, round(SUPERSAMPLING * (1.6 + 0.03 * extent)))
    rim_alpha = coverage(rim.astype(bool) & mask)[..., None]

    canvas *= 1 - alpha[..., None]
    canvas += color * shade[..., None] * (alpha[..., None] - rim_alpha) + rim_color * rim_alpha
    np.clip(canvas, 0, 255, out=canvas)


def _random_hue(rng: Generator, name: str) -> float:
    """Choose a hue, mostly that of the category: as in life, colour tells something about a thing, but not all."""
    if rng.random() < ANY_HUE:
        return rng.uniform(0, 360)
    return 360 * NAMES.index(name) / len(NAMES)


def paint_image(rng: Generator, image_size: int, items: Sequence[Item]) -> NDArray[np.uint8]:
    """Paint items over a background, back to front. Shapes: (H, W, 3), RGB."""
    image = _paint_background(rng, image_size)
    for item in items:
        for outline in item.outlines:
            paint_shape(rng, image, outline, _random_hue(rng, item.name))
    image += rng.normal(0, rng.uniform(0.5, 2.5), image.shape[:2])[..., None]
    return np.rint(image.clip(0, 255)).astype(np.uint8)
