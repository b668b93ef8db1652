"""Overlap and suppression of boxes: what ``mmcv.ops.nms`` and ``mmcv.ops.bbox`` call.

Boxes are (x1, y1, x2, y2); with ``offset`` 1 they include their last pixel, so that a width is
x2 - x1 + 1. Two boxes without any area overlap by 0 here; the compiled ops compute 0 / 0.
"""

import numpy as np
import torch
import torchvision
from torch import Tensor

from .precision import widen

__all__ = ['bbox_overlaps', 'nms', 'nms_match', 'softnms']

NAIVE, LINEAR, GAUSSIAN = 0, 1, 2  # mmcv's numbers for the methods of soft suppression
OVER_FIRST = 1  # mmcv's number for the mode that divides by the first box, not by the union


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that no better box overlaps by more than the threshold, best first.

    Shapes: boxes (N, 4), scores (N,), result (M,) int64. Equal scores keep their order.
    """
    boxes, scores = widen(boxes, scores)
    if offset:
        # min(a + 1, b + 1) = min(a, b) + 1: moving every far corner out by one pixel changes
        # widths, areas and intersections exactly as the offset in the compiled op does.
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # torchvision's CPU kernel compares in double precision, where a float32 overlap of 3/5 is
    # more than 0.6; the compiled op rounds the threshold to the precision of the boxes.
    threshold = torch.tensor(iou_threshold, dtype=boxes.dtype)
    return torchvision.ops.nms(boxes, scores, threshold.item())


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft suppression (arXiv 1704.04503): lower the scores of what the best box overlaps, repeat.

    The first rows of ``dets`` (N, 5) receive the remaining boxes with their lowered scores in the
    order in which they were picked; the indices of these boxes, (M,) int64, are returned. The
    very first pick stays even if its score is below ``min_score``, as in the compiled op.
    """
    wide_boxes, wide_scores = widen(boxes, scores)
    # In numpy, whose calls cost a fraction of torch's on the few numbers of each round.
    corners = wide_boxes.T.cpu().numpy()
    extent = corners[2:] - corners[:2] + offset
    table = np.stack([*corners, extent[0] * extent[1], wide_scores.cpu().numpy()])
    x1, y1, x2, y2, area, score = table
    index = np.arange(len(boxes))
    smallest = max(offset, np.finfo(table.dtype).tiny)
    place, num_left = 0, len(boxes)
    while place < num_left:
        best = place + score[place:num_left].argmax()
        for array in (table, index):
            array[..., [place, best]] = array[..., [best, place]]
        rest = slice(place + 1, num_left)
        width = np.minimum(x2[place], x2[rest]) - np.maximum(x1[place], x1[rest]) + offset
        height = np.minimum(y2[place], y2[rest]) - np.maximum(y1[place], y1[rest]) + offset
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        overlaps = shared / np.maximum(area[place] + area[rest] - shared, smallest)
        score[rest] *= _decay(overlaps, iou_threshold, sigma, method)
        place += 1
        sources = place + _refill(score[rest] >= min_score)
        num_left = place + len(sources)
        for array in (table, index):
            array[..., place:num_left] = array[..., sources]
    dets[:num_left] = torch.from_numpy(table[[0, 1, 2, 3, 5], :num_left].T)
    return torch.from_numpy(index[:num_left]).to(boxes.device)


def _decay(overlaps: np.ndarray, iou_threshold: float, sigma: float, method: int) -> np.ndarray:
    """The factors in [0, 1] for the scores, from the boxes' overlaps with the better one."""
    if method == GAUSSIAN:
        return np.exp(-(overlaps**2) / sigma)
    return np.where(overlaps >= iou_threshold, 1 - overlaps if method == LINEAR else 0, 1)


def _refill(remains: np.ndarray) -> np.ndarray:
    """Where the items of a shortened list come from: each gap is filled with the last one left.

    This is how the compiled op shrinks its list, and the order decides between equal scores.
    """
    sources = np.arange(len(remains))
    num_left = np.count_nonzero(remains)
    sources[:num_left][~remains[:num_left]] = sources[num_left:][remains[num_left:]][::-1]
    return sources[:num_left]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of indices: each kept box, followed by those that it suppresses, by falling score.

    Unlike ``nms``, an overlap equal to the threshold suppresses. Shape: dets (N, 5), scores last.
    """
    (dets,) = widen(dets)
    order = dets[:, 4].argsort(descending=True, stable=True)
    groups = []
    while len(order):
        best, rest = order[:1], order[1:]
        is_matched = _overlaps(dets[best, :4], dets[rest, :4], 0) >= iou_threshold
        groups.append([*best.tolist(), *rest[is_matched].tolist()])
        order = rest[~is_matched]
    return groups


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Write the overlaps of boxes (M, 4) and (N, 4) to ``ious``: (M, N), or (M,) if ``aligned``."""
    bboxes1, bboxes2 = widen(bboxes1, bboxes2)
    if not aligned:
        bboxes1 = bboxes1[:, None]
    ious.copy_(_overlaps(bboxes1, bboxes2, offset, over_first=mode == OVER_FIRST))


def _overlaps(first: Tensor, second: Tensor, offset: int, over_first: bool = False) -> Tensor:
    """Intersection over union (or over the first box) of boxes (..., 4), broadcast."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (high - low + offset).clamp(min=0).prod(-1)
    whole = (first[..., 2:] - first[..., :2] + offset).prod(-1)
    if not over_first:
        whole = whole + (second[..., 2:] - second[..., :2] + offset).prod(-1) - intersection
    return intersection / whole.clamp(min=max(offset, torch.finfo(whole.dtype).tiny))
