"""Suppression of overlapping boxes: what ``mmcv.ops.nms`` calls.

Boxes are (x1, y1, x2, y2); with ``offset`` 1 they include their last pixel, so that a width is x2 - x1 + 1. Two boxes
without any area overlap by 0 here; the compiled ops compute 0 / 0.
"""

import numpy as np
import torch
import torchvision
from torch import Tensor

from .precision import widen

__all__ = ['nms', 'nms_match', 'softnms']

GROUPED_FROM = 256  # boxes, below which looking for groups takes longer than it saves
LINEAR, GAUSSIAN = 1, 2  # mmcv's numbers for methods of soft suppression; 0 is 'naive'


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that no better box overlaps by more than the threshold, best first.

    Shapes:
        boxes (N, 4), scores (N,) -> (M,) int64. Equal scores keep their order.
    """
    boxes, scores = widen(boxes, scores)
    if offset:
        # min(a + 1, b + 1) = min(a, b) + 1: moving every far corner out by one pixel changes widths, areas and
        # intersections exactly as the offset in the compiled op does.
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # torchvision's CPU kernel compares in double precision, where a float32 overlap of 3/5 is more than 0.6; the
    # compiled op rounds the threshold to the precision of the boxes.
    threshold = torch.tensor(iou_threshold, dtype=boxes.dtype)
    if len(boxes) < GROUPED_FROM or boxes.device.type != 'cpu':
        return torchvision.ops.nms(boxes, scores, threshold.item())
    keep = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for group in separate_groups(boxes):
        keep[group[torchvision.ops.nms(boxes[group], scores[group], threshold.item())]] = True
    best_first = scores.argsort(descending=True, stable=True)
    return best_first[keep[best_first]]


def separate_groups(boxes: Tensor) -> tuple[Tensor, ...]:
    """Return the indices of groups of boxes that lie apart along x, so that no box overlaps one of another group.

    Classes or levels that are suppressed separately are moved apart before. The time grows with the square of a group.
    """
    order = boxes[:, 0].argsort()
    reached = boxes[order][:, [0, 2]].amax(dim=1).cummax(dim=0).values
    apart = boxes[order[1:], 0] > reached[:-1]  # never behind a NaN
    indices = order.tensor_split((apart.nonzero().flatten() + 1).tolist())
    return tuple(index.sort().values for index in indices)  # equal scores keep their order


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return groups of indices: each kept box, followed by those that it suppresses, by falling score.

    Unlike ``nms``, an overlap equal to the threshold suppresses.

    Shapes:
        dets (N, 5), the score last.
    """
    (dets,) = widen(dets)
    order = dets[:, 4].argsort(descending=True, stable=True)
    groups = []
    while len(order):
        best, others = order[:1], order[1:]
        overlaps = torchvision.ops.box_iou(dets[best, :4], dets[others, :4])[0]
        is_suppressed = overlaps >= iou_threshold
        groups.append([*best.tolist(), *others[is_suppressed].tolist()])
        order = others[~is_suppressed]
    return groups


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

    The first rows of ``dets`` (N, 5) receive the remaining boxes with their lowered scores in the order in which they
    were picked; the indices of these boxes, (M,) int64, are returned. The very first pick stays even if its score is
    below ``min_score``, as in the compiled op.
    """
    wide_boxes, wide_scores = widen(boxes, scores)
    # in numpy, whose calls cost a fraction of torch's on the few numbers of each round
    corners = wide_boxes.T.cpu().numpy()
    extent = corners[2:] - corners[:2] + offset
    table = np.stack([*corners, extent[0] * extent[1], wide_scores.cpu().numpy()])
    x1, y1, x2, y2, area, score = table
    index = np.arange(len(boxes))
    smallest = max(float(offset), float(np.finfo(table.dtype).tiny))
    num_picked, num_left = 0, len(boxes)
    while num_picked < num_left:
        best = num_picked + score[num_picked:num_left].argmax()
        for array in (table, index):
            array[..., [num_picked, best]] = array[..., [best, num_picked]]
        pick, others = num_picked, slice(num_picked + 1, num_left)
        width = np.minimum(x2[pick], x2[others]) - np.maximum(x1[pick], x1[others]) + offset
        height = np.minimum(y2[pick], y2[others]) - np.maximum(y1[pick], y1[others]) + offset
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        overlaps = shared / np.maximum(area[pick] + area[others] - shared, smallest)
        if method == GAUSSIAN:
            score[others] *= np.exp(-(overlaps**2) / sigma)
        else:
            score[others] *= np.where(overlaps >= iou_threshold, 1 - overlaps if method == LINEAR else 0, 1)
        num_picked += 1
        sources = num_picked + _fill_gaps(score[others] >= min_score)
        num_left = num_picked + len(sources)
        for array in (table, index):
            array[..., num_picked:num_left] = array[..., sources]
    dets[:num_left] = torch.from_numpy(table[[0, 1, 2, 3, 5], :num_left].T)
    return torch.from_numpy(index[:num_left]).to(boxes.device)


def _fill_gaps(remains: np.ndarray) -> np.ndarray:
    """Return where the items of a shortened list come from: each gap is filled with the last item that is left.

    This is how the compiled op shortens its list, and the order decides between equal scores.
    """
    sources = np.arange(len(remains))
    num_left = np.count_nonzero(remains)
    sources[:num_left][~remains[:num_left]] = sources[num_left:][remains[num_left:]][::-1]
    return sources[:num_left]
