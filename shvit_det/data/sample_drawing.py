"""Primitives of the drawn sample set: outlines, masks, backgrounds, paint.

Every random choice comes from the generator that is handed in, so that a picture depends on its
seed alone. Images are float32 arrays (H, W, 3), RGB, 0 to 255. Coordinates are COCO's: pixel i
covers the interval from i to i + 1. Masks are drawn `SUPERSAMPLING` times finer than the image:
their mean is the anti-aliased coverage of a pixel, and their borders are polygons of sub-pixel
accuracy.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

FloatArray = NDArray[Any]  # float32; the annotations of OpenCV and numpy know no more of their results

SUPERSAMPLING = 4
SIMPLIFICATION = 0.3  # how far a polygon may be from the border of its mask, in pixels
SMALLEST_PART = 4.0  # area in square pixels below which a separate part of an object is dropped


def _star_shaped(radii: Sequence[float]) -> NDArray[np.float64]:
    """Place points around the origin at equal angles and the given distances."""
    angles = np.arange(len(radii)) * (2 * np.pi / len(radii))
    return np.stack((np.cos(angles), np.sin(angles)), axis=1) * np.asarray(radii)[:, None]


def _cross(span: float, arm: float) -> NDArray[np.float64]:
    """Give the twelve corners of a plus sign: as wide as `span`, arms as thick as `arm`."""
    corner = np.array([(span, -arm), (span, arm), (arm, arm)]) / 2
    quarter_turn = np.array([(0, 1), (-1, 0)])
    corners = [corner]
    for _ in range(3):
        corners.append(corners[-1] @ quarter_turn)
    return np.concatenate(corners)


# Outlines of size 1 around the origin, (N, 2). They are scaled to look equally large.
OUTLINES: dict[str, NDArray[np.float64]] = {
    'disc': _star_shaped([0.5] * 72),
    'square': _star_shaped([0.64] * 4),
    'triangle': _star_shaped([0.69] * 3),
    'star': _star_shaped([0.66, 0.27] * 5),
    'cross': _cross(span=1.08, arm=0.36),
}


def place_outline(name: str, center: tuple[float, float], size: float, angle: float) -> NDArray[np.float64]:
    """Turn an outline by `angle` (radians), scale it and move it.

    Shapes: (N, 2), x and y in pixels.
    """
    cosine, sine = np.cos(angle), np.sin(angle)
    return OUTLINES[name] @ np.array([(cosine, sine), (-sine, cosine)]) * size + center


def _fine_points(outline: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.rint(outline * SUPERSAMPLING - 0.5).astype(np.int32)


def fill_outline(outline: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Fill an outline, cut at the image's border, on the fine grid.

    Shapes: (N, 2) -> (height * SUPERSAMPLING, width * SUPERSAMPLING).
    """
    mask = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    cv2.fillPoly(mask, [_fine_points(outline)], 1)
    return mask.astype(bool)


def coverage(mask: NDArray[np.bool_]) -> FloatArray:
    """Tell how much of each pixel, 0 to 1, a mask covers. Shapes: the fine grid -> (H, W)."""
    height, width = (length // SUPERSAMPLING for length in mask.shape)
    return cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)


def has_hole(mask: NDArray[np.bool_]) -> bool:
    """Tell whether the background shows through a mask: COCO's polygons cannot say that."""
    _, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return hierarchy is not None and bool((hierarchy[0, :, 3] >= 0).any())


def trace_polygons(mask: NDArray[np.bool_]) -> list[list[float]]:
    """Trace the parts of a mask without holes: COCO's [x, y, x, y, ...], one list for a part."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        corners = cv2.approxPolyDP(contour, SIMPLIFICATION * SUPERSAMPLING, closed=True)
        if len(corners) >= 3 and cv2.contourArea(corners) >= SMALLEST_PART * SUPERSAMPLING**2:
            points = (corners.reshape(-1).astype(np.float64) + 0.5) / SUPERSAMPLING
            polygons.append([round(float(value), 2) for value in points])
    return polygons


def _value_noise(rng: Generator, size: int, cells: int) -> FloatArray:
    """Smooth noise between 0 and 1 with about `cells` bumps along a side. Shapes: (H, W)."""
    lattice = rng.random((cells + 1, cells + 1), dtype=np.float32)
    return cv2.resize(lattice, (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def _distance(size: int, angle: float) -> FloatArray:
    """Measure how far each pixel lies along a direction (radians), in pixels. Shapes: (H, W)."""
    axis = np.arange(size, dtype=np.float32) - size / 2
    return np.float32(np.cos(angle)) * axis + np.float32(np.sin(angle)) * axis[:, None]


def _waves(rng: Generator, size: int, period: float, angle: float) -> FloatArray:
    """Make bands with soft borders, -1 to 1. Shapes: (H, W)."""
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


# Each fills a square with a pattern between about 0 and 1.
BACKGROUNDS: tuple[Callable[[Generator, int], FloatArray], ...] = (
    _ramp,
    _clouds,
    _stripes,
    _checker,
    _speckle,
)
HUE_SPREAD = 20.0  # degrees, the standard deviation around the hue asked for
TEXTURES = (_ramp, _ramp, _clouds, _stripes)


def _rgb(hue: float, saturation: float, value: float) -> FloatArray:
    """Convert a colour, hue in degrees and the others 0 to 1, to RGB, 0 to 255. Shapes: (3,)."""
    pixel = np.array([[[hue % 360, np.clip(saturation, 0, 1), np.clip(value, 0, 1)]]], np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0] * 255


def paint_background(rng: Generator, size: int) -> FloatArray:
    """Paint two muted colours in a random pattern under uneven light. Shapes: (H, W, 3)."""
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
    """Choose a colour near a hue that is not the one it will be painted over. Shapes: (3,) -> (3,)."""
    candidates = [_rgb(rng.normal(hue, HUE_SPREAD), rng.uniform(0.35, 0.95), rng.uniform(0.3, 1)) for _ in range(4)]
    return next(
        (color for color in candidates if np.linalg.norm(color - surround) > 75),
        max(candidates, key=lambda color: float(np.linalg.norm(color - surround))),
    )


def paint_shape(rng: Generator, image: FloatArray, outline: NDArray[np.float64], hue: float) -> None:
    """Paint a shape with its shadow, texture and rim over what is there, in place, in about a hue (degrees).

    Shapes: image (H, W, 3), outline (N, 2) in pixels.
    """
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
    thickness = round(SUPERSAMPLING * (1.6 + 0.03 * extent))
    cv2.polylines(rim, [_fine_points(outline)], True, 1, thickness)
    rim_alpha = coverage(rim.astype(bool) & mask)[..., None]

    canvas *= 1 - alpha[..., None]
    canvas += color * shade[..., None] * (alpha[..., None] - rim_alpha) + rim_color * rim_alpha
    np.clip(canvas, 0, 255, out=canvas)
