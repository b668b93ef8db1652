"""What a detector does beyond its networks, as operations that have a standard ONNX operator."""

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

INVALID = -1.0
"""The score of a candidate that is none; all others are at least 0."""


class _NonMaxSuppression(torch.autograd.Function):
    """ONNX's NonMaxSuppression with one class, for all images of a batch; in PyTorch torchvision's, image by image.

    Shapes:
        (B, N, 4), (B, N) -> (M, 3): image, class and candidate; by image, and from the highest score.
    """

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
        kept = [boxes.new_zeros((0, 3), dtype=torch.long)]
        for image, (own_boxes, own_scores) in enumerate(zip(boxes, scores, strict=True)):
            valid = (own_scores > INVALID / 2).nonzero().flatten()
            chosen = valid[nms(own_boxes[valid], own_scores[valid], iou_threshold)[:limit]]
            kept.append(torch.stack((torch.full_like(chosen, image), torch.zeros_like(chosen), chosen), dim=1))
        return torch.cat(kept)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, iou_threshold: float, limit: int) -> Any:
        def constant(value: float, dtype: torch.dtype) -> Any:
            return g.op('Constant', value_t=torch.tensor([value], dtype=dtype))

        scores = g.op('Unsqueeze', scores, constant(1, torch.long))
        thresholds = constant(iou_threshold, torch.float32), constant(INVALID / 2, torch.float32)
        return g.op('NonMaxSuppression', boxes, scores, constant(limit, torch.long), *thresholds)


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Return which candidates survive the suppression within their group, as mmdet finds them.

    Groups are moved apart as mmdet does it, since that rounds the boxes: ONNX's own classes would decide otherwise
    where the overlap of two boxes is close to the threshold.

    Args:
        boxes: Left, top, right, bottom.
        scores: From 0 to 1.
        groups: The class or level of each candidate.
        valid: Which are candidates at all.
        iou_threshold: Candidates that overlap more than this with a better one are dropped.
        limit: Survivors per image.

    Shapes:
        (B, N, 4) and three times (B, N), N at least 1 -> the image and the candidate, (M,) each; by image, and
        from the highest score.
    """
    reach = torch.where(valid.unsqueeze(-1), boxes, 0).amax((1, 2)) + 1
    apart = boxes + (groups.to(boxes) * reach.unsqueeze(-1)).unsqueeze(-1)
    masked = torch.where(valid, scores, INVALID)
    kept = _NonMaxSuppression.apply(apart, masked, iou_threshold, limit)
    return kept[:, 0], kept[:, 2]


def suppress_flat(
    boxes: Tensor, scores: Tensor, groups: Tensor, images: Tensor, batch: Any, iou_threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    """As :func:`suppress`, for candidates of all images in one row.

    Args:
        boxes: Left, top, right, bottom.
        scores: From 0 to 1.
        groups: The class of each candidate.
        images: Whose it is.
        batch: The number of images.
        iou_threshold: Candidates that overlap more than this with a better one are dropped.
        limit: Survivors per image.

    Shapes:
        (N, 4) and three times (N,), N may be 0 -> the image and the candidate, (M,) each.
    """
    # One more, of no image: no operator ever meets an empty tensor here, which not all of them take.
    boxes = torch.cat((boxes, boxes.new_zeros(1, 4)))
    scores = torch.cat((scores, scores.new_zeros(1)))
    groups = torch.cat((groups, groups.new_zeros(1)))
    images = torch.cat((images, images.new_full((1,), -1)))
    valid = images.unsqueeze(0) == torch.arange(batch, device=images.device).unsqueeze(1)
    every = torch.zeros_like(valid)
    boxes = boxes.unsqueeze(0) + every.unsqueeze(-1).to(boxes)
    return suppress(boxes, scores + every.to(scores), groups + every.to(groups), valid, iou_threshold, limit)


def at_most(limit: int, size: Any) -> Any:
    """Return the smaller of a constant and a size that is known only when the graph runs."""
    return torch.minimum(torch.as_tensor(limit), torch.as_tensor(size))


def rows(values: Tensor, places: Tensor) -> Tensor:
    """Return ``values[b, places[b]]`` for every image ``b``.

    Shapes:
        (B, N, D), (B, K) -> (B, K, D).
    """
    batch, number, width = values.shape
    first = torch.arange(batch, device=values.device).unsqueeze(1) * number
    return values.reshape(batch * number, width)[(places + first).flatten()].reshape(batch, -1, width)
