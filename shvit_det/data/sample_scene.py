"""What an image of the drawn sample set shows: objects in front of each other, and crowds."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from shvit_det.data.sample_drawing import (
    OUTLINES,
    SUPERSAMPLING,
    fill_outline,
    has_hole,
    paint_background,
    paint_shape,
    place_outline,
)

NAMES = list(OUTLINES)

SMALLEST_OBJECT = 36.0  # pixels across; what occlusion leaves of them is small by COCO's measure
LARGEST_OBJECT = 0.65  # share of the image's side: 125 pixels of 192, so that COCO's large occurs
MIN_VISIBLE = 0.6  # share of an object that must not be hidden
TRIES = 40  # places to try for an object before the image goes without it
EMPTY_EVERY = 50  # images; the eighth of so many has no object
CROWD_SIZE = 26  # shapes
ANY_HUE = 0.1  # share of the shapes whose colour says nothing about their category


@dataclass
class Item:
    """An object of a scene, or a crowd of them.

    Shapes: outlines (N, 2) in pixels; `shape`, what it covers within the image, and `visible`,
    the part that no item in front hides, (S, S) on the fine grid of `drawing`.
    """

    name: str
    outlines: list[NDArray[np.float64]]
    shape: NDArray[np.bool_]
    visible: NDArray[np.bool_]
    full_area: float  # in cells of the fine grid, with what lies outside the image
    is_crowd: bool = False

    def may_be_left_with(self, visible: NDArray[np.bool_]) -> bool:
        """Tell whether this much shows enough, and no hole, which polygons could not express."""
        if np.count_nonzero(visible) < MIN_VISIBLE * self.full_area:
            return False
        return self.is_crowd or not has_hole(visible)


def _random_object(rng: Generator, name: str, image_size: int) -> Item:
    """Draw an object's size, turn and place; its border may lie outside the image."""
    low, high = np.log(SMALLEST_OBJECT), np.log(LARGEST_OBJECT * image_size)
    size = float(np.exp(rng.uniform(low, high)))
    x, y = rng.uniform(0.35 * size, image_size - 0.35 * size, 2)
    outline = place_outline(name, (x, y), size, rng.uniform(0, 2 * np.pi))
    shape = fill_outline(outline, image_size, image_size)
    full_area = cv2.contourArea(outline.astype(np.float32)) * SUPERSAMPLING**2
    return Item(name, [outline], shape, shape, full_area)


def _random_crowd(rng: Generator, image_size: int) -> Item:
    """Draw a heap of small shapes of one category; the gaps between them belong to its region."""
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


def compose_scene(rng: Generator, image_size: int, index: int) -> list[Item]:
    """Choose what the image number `index` of a split shows, back to front.

    The first image has the crowd, behind its objects. The category of an image's first object
    goes round with the index, so that any five images in a row without an empty one have all.
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


def _random_hue(rng: Generator, name: str) -> float:
    """Choose a hue, mostly that of the category: as in life, colour tells something about a thing, but not all."""
    if rng.random() < ANY_HUE:
        return rng.uniform(0, 360)
    return 360 * NAMES.index(name) / len(NAMES)


def paint_scene(rng: Generator, image_size: int, items: list[Item]) -> NDArray[np.uint8]:
    """Paint the items over a background, back to front. Shapes: (H, W, 3), RGB."""
    image = paint_background(rng, image_size)
    for item in items:
        for outline in item.outlines:
            paint_shape(rng, image, outline, _random_hue(rng, item.name))
    image += rng.normal(0, rng.uniform(0.5, 2.5), image.shape[:2])[..., None]
    return np.rint(image.clip(0, 255)).astype(np.uint8)
