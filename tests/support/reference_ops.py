"""What mmcv's ops are defined to give, one number at a time: slow, plain, and without torch.

Written from the definitions in the papers and in mmcv's sources. Overlaps are fractions, so that
thresholds are met exactly; arrays are numpy's, in double precision.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import product

import numpy as np

Box = Sequence[float]


def overlap(first: Box, second: Box, offset: int = 0) -> Fraction:
    """Intersection over union; 0 where both have no area."""

    def area(x1: Fraction, y1: Fraction, x2: Fraction, y2: Fraction) -> Fraction:
        return (x2 - x1 + offset) * (y2 - y1 + offset)

    first, second = ([Fraction(float(value)) for value in box] for box in (first, second))
    width = min(first[2], second[2]) - max(first[0], second[0]) + offset
    height = min(first[3], second[3]) - max(first[1], second[1]) + offset
    intersection = max(width, Fraction(0)) * max(height, Fraction(0))
    union = area(*first) + area(*second) - intersection
    return intersection / union if union else Fraction(0)


def by_score(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def nms(boxes: Sequence[Box], scores: Sequence[float], threshold: str, offset: int) -> list[int]:
    kept: list[int] = []
    for index in by_score(scores):
        others = (overlap(boxes[better], boxes[index], offset) for better in kept)
        if all(other <= Fraction(threshold) for other in others):
            kept.append(index)
    return kept


def nms_match(boxes: Sequence[Box], scores: Sequence[float], threshold: str) -> list[list[int]]:
    groups: list[list[int]] = []
    for index in by_score(scores):
        for group in groups:
            if overlap(boxes[group[0]], boxes[index]) >= Fraction(threshold):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def soft_nms(
    boxes: Sequence[Box],
    scores: Sequence[float],
    threshold: str,
    sigma: float,
    min_score: float,
    method: str,
    offset: int,
) -> list[tuple[int, float]]:
    """Pairs of index and lowered score, in the order of picking."""
    todo = list(zip(range(len(boxes)), scores, strict=True))
    picked: list[tuple[int, float]] = []
    while todo:
        best = max(range(len(todo)), key=lambda place: todo[place][1])
        todo[0], todo[best] = todo[best], todo[0]
        picked.append(todo.pop(0))
        place = 0
        while place < len(todo):
            index, score = todo[place]
            shared = overlap(boxes[picked[-1][0]], boxes[index], offset)
            if method == 'gaussian':
                score *= math.exp(-(float(shared) ** 2) / sigma)
            elif shared >= Fraction(threshold):
                score *= 1 - float(shared) if method == 'linear' else 0
            todo[place] = (index, score)
            if score < min_score:
                todo[place] = todo[-1]
                todo.pop()
            else:
                place += 1
    return picked


def interpolate(channel: np.ndarray, y: float, x: float) -> float:
    """RoIAlign's value between the pixels: the border's up to one pixel outside, 0 beyond."""
    height, width = channel.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    return sum(
        channel[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
        for row in {math.floor(y), math.ceil(y)}
        for column in {math.floor(x), math.ceil(x)}
    )


def roi_align(
    features: np.ndarray,
    rois: np.ndarray,
    size: tuple[int, int],
    scale: float,
    ratio: int,
    aligned: bool,
) -> np.ndarray:
    pooled = np.zeros((len(rois), features.shape[1], *size))
    for region, channel, row, column in np.ndindex(*pooled.shape):
        image, *corners = rois[region]
        x1, y1, x2, y2 = (corner * scale - (0.5 if aligned else 0) for corner in corners)
        smallest = -math.inf if aligned else 1
        bin_height = max(y2 - y1, smallest) / size[0]
        bin_width = max(x2 - x1, smallest) / size[1]
        num_rows, num_columns = ratio or math.ceil(bin_height), ratio or math.ceil(bin_width)
        samples = [
            interpolate(
                features[int(image), channel],
                y1 + (row + (i + 0.5) / num_rows) * bin_height,
                x1 + (column + (j + 0.5) / num_columns) * bin_width,
            )
            for i, j in product(range(num_rows), range(num_columns))
        ]
        pooled[region, channel, row, column] = np.mean(samples) if samples else 0
    return pooled


def sigmoid_focal_loss(
    logits: np.ndarray, target: Sequence[int], gamma: float, alpha: float, weight: Sequence[float]
) -> np.ndarray:
    loss = np.zeros(logits.shape)
    for row, column in np.ndindex(*logits.shape):
        probability = 1 / (1 + math.exp(-logits[row, column]))
        if target[row] == column:
            loss[row, column] = -alpha * (1 - probability) ** gamma * math.log(probability)
        else:
            loss[row, column] = -(1 - alpha) * probability**gamma * math.log(1 - probability)
        if target[row] < len(weight):
            loss[row, column] *= weight[target[row]]
    return loss


def interpolate_zero(channel: np.ndarray, y: float, x: float) -> float:
    """Deformable convolution's and attention's value between the pixels: 0 outside the map."""
    height, width = channel.shape
    top, left = math.floor(y), math.floor(x)
    return sum(
        channel[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
        for row, column in product((top, top + 1), (left, left + 1))
        if 0 <= row < height and 0 <= column < width
    )


def deform_conv2d(
    features: np.ndarray,
    offset: np.ndarray,
    mask: np.ndarray,
    weight: np.ndarray,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    deform_groups: int,
) -> np.ndarray:
    """Modulated deformable convolution; a mask of ones makes it the plain one."""
    in_channels, (out_channels, group_channels, kernel_h, kernel_w) = (
        features.shape[1],
        weight.shape,
    )
    output = np.zeros((len(features), out_channels, *offset.shape[2:]))
    for image, out_channel, row, column in np.ndindex(*output.shape):
        first_channel = out_channel // (out_channels // groups) * group_channels
        for i, j, k in np.ndindex(group_channels, kernel_h, kernel_w):
            channel = first_channel + i
            point = channel // (in_channels // deform_groups) * kernel_h * kernel_w
            point += j * kernel_w + k
            y = row * stride[0] - padding[0] + j * dilation[0]
            x = column * stride[1] - padding[1] + k * dilation[1]
            value = interpolate_zero(
                features[image, channel],
                y + offset[image, 2 * point, row, column],
                x + offset[image, 2 * point + 1, row, column],
            )
            output[image, out_channel, row, column] += (
                weight[out_channel, i, j, k] * mask[image, point, row, column] * value
            )
    return output


def slopes_zero(channel: np.ndarray, y: float, x: float) -> tuple[float, float]:
    """The derivatives of ``interpolate_zero`` by y and x that mmcv takes.

    On a row or column of pixels, where they jump, those towards the next one; none a whole pixel or more outside.
    """
    height, width = channel.shape
    if not (-1 < y < height and -1 < x < width):
        return 0.0, 0.0
    padded = np.pad(channel, 1)
    top, left = math.floor(y) + 1, math.floor(x) + 1
    (a, b), (c, d) = padded[top : top + 2, left : left + 2]
    below, beside = y - math.floor(y), x - math.floor(x)
    return (1 - beside) * (c - a) + beside * (d - b), (1 - below) * (b - a) + below * (d - c)


def deform_conv2d_offset_gradient(
    features: np.ndarray,
    offset: np.ndarray,
    mask: np.ndarray,
    weight: np.ndarray,
    grad_output: np.ndarray,
    stride: int,
    padding: int,
) -> np.ndarray:
    """By the offsets of one image, one group and one deformable group."""
    gradient = np.zeros(offset.shape)
    for out_channel, channel, j, k in np.ndindex(*weight.shape):
        point = j * weight.shape[3] + k
        for row, column in np.ndindex(*offset.shape[2:]):
            slopes = slopes_zero(
                features[0, channel],
                row * stride - padding + j + offset[0, 2 * point, row, column],
                column * stride - padding + k + offset[0, 2 * point + 1, row, column],
            )
            share = grad_output[0, out_channel, row, column] * mask[0, point, row, column]
            share *= weight[out_channel, channel, j, k]
            gradient[0, 2 * point : 2 * point + 2, row, column] += np.multiply(slopes, share)
    return gradient


def multi_scale_deformable_attention(
    value: np.ndarray,
    shapes: Sequence[tuple[int, int]],
    locations: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    batch_size, _, num_heads, width = value.shape
    maps = _level_maps(value, shapes)
    attended = np.zeros((batch_size, locations.shape[1], num_heads, width))
    for image, query, head, level, point in np.ndindex(*weights.shape):
        rows, columns = shapes[level]
        x, y = locations[image, query, head, level, point]
        for channel in range(width):
            attended[image, query, head, channel] += weights[image, query, head, level, point] * interpolate_zero(
                maps[level][image, :, :, head, channel], y * rows - 0.5, x * columns - 0.5
            )
    return attended.reshape(batch_size, -1, num_heads * width)


def multi_scale_deformable_attention_location_gradient(
    value: np.ndarray,
    shapes: Sequence[tuple[int, int]],
    locations: np.ndarray,
    weights: np.ndarray,
    grad_output: np.ndarray,
) -> np.ndarray:
    _, _, num_heads, width = value.shape
    maps = _level_maps(value, shapes)
    by_head = grad_output.reshape(*grad_output.shape[:2], num_heads, width)
    gradient = np.zeros(locations.shape)
    for image, query, head, level, point in np.ndindex(*weights.shape):
        rows, columns = shapes[level]
        x, y = locations[image, query, head, level, point]
        for channel in range(width):
            by_y, by_x = slopes_zero(maps[level][image, :, :, head, channel], y * rows - 0.5, x * columns - 0.5)
            share = by_head[image, query, head, channel] * weights[image, query, head, level, point]
            gradient[image, query, head, level, point] += share * np.array([by_x * columns, by_y * rows])
    return gradient


def _level_maps(value: np.ndarray, shapes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """The values of each level as maps, (B, rows, columns, heads, width)."""
    ends = np.cumsum([rows * columns for rows, columns in shapes])
    pieces = np.split(value, ends[:-1], axis=1)
    return [piece.reshape(len(value), *shape, *value.shape[2:]) for piece, shape in zip(pieces, shapes, strict=True)]
