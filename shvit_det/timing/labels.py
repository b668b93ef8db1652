"""Where names of points stand in a picture, so that they cover neither points nor each other."""

from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, bottom, right, top

DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8))
GAPS = (10, 18, 28, 40, 54)  # between a point and its label, near ones first
POINT = 5  # half the side of the square that a point takes


def place_labels(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], area: Box
) -> list[tuple[float, float]]:
    """Return the middle of the label of each point, all in pixels.

    Each label takes the first place around its point that is free and inside the area, or the least covered one.
    """
    taken = [box_around(point, (2 * POINT, 2 * POINT)) for point in points]
    middles = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        places = [
            (x + right * (gap + width / 2), y + up * (gap + height / 2)) for gap in GAPS for right, up in DIRECTIONS
        ]
        boxes = [box_around(place, (width, height)) for place in places]
        costs = [sum(common_area(box, other) for other in taken) + outside(box, area) for box in boxes]
        best = costs.index(min(costs))
        middles.append(places[best])
        taken.append(boxes[best])
    return middles


def box_around(middle: tuple[float, float], size: tuple[float, float]) -> Box:
    """Return the box of a size around its middle."""
    (x, y), (width, height) = middle, size
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def common_area(first: Box, second: Box) -> float:
    """Return how much two boxes cover of each other."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)


def outside(box: Box, area: Box) -> float:
    """Return how much of a box lies outside an area."""
    return (box[2] - box[0]) * (box[3] - box[1]) - common_area(box, area)
