"""Non-maximum suppression in an exported graph, with the results of mmdet's."""

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

INVALID = -1.0
"""The score of a box that takes no part; all others are at least 0."""


class _NonMaxSuppression(torch.autograd.Function):
    """ONNX's NonMaxSuppression with one class, for all images of a batch; in PyTorch torchvision's, image by image.

    Shapes:
        (B, N, 4), (B, N) -> (M, 3): image, class and box; by image, and from the highest score.
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


def grouped_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Return the boxes that survive the suppression within their group, as mmdet's ``batched_nms`` finds them.

    Groups are moved apart by mmdet's offsets, which round the boxes. With groups as ONNX's classes, boxes whose overlap
    is close to the threshold could survive in one of the two and not in the other.

    Args:
        boxes: Left, top, right, bottom; (B, N, 4), N at least 1.
        scores: From 0 to 1; (B, N).
        groups: The class or the level of each box; (B, N).
        valid: Which boxes take part; (B, N).
        iou_threshold: A box that overlaps a better one by more than this is dropped.
        limit: The largest number of survivors of an image.

    Returns:
        The image and the index of each survivor, (M,) each; by image, and from the highest score.
    """
    reach = torch.where(valid.unsqueeze(-1), boxes, 0).amax((1, 2)) + 1
    apart = boxes + (groups.to(boxes) * reach.unsqueeze(-1)).unsqueeze(-1)
    masked = torch.where(valid, scores, INVALID)
    kept = _NonMaxSuppression.apply(apart, masked, iou_threshold, limit)
    return kept[:, 0], kept[:, 2]


def grouped_nms_flat(
    boxes: Tensor, scores: Tensor, groups: Tensor, images: Tensor, batch: Any, iou_threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Do what :func:`grouped_nms` does for boxes of all ``batch`` images in one row, (N, 4); N may be 0."""
    # One box more, of no image: not every runtime's operators take empty tensors.
    boxes = torch.cat((boxes, boxes.new_zeros(1, 4)))
    scores = torch.cat((scores, scores.new_zeros(1)))
    groups = torch.cat((groups, groups.new_zeros(1)))
    images = torch.cat((images, images.new_full((1,), -1)))
    valid = images.unsqueeze(0) == torch.arange(batch, device=images.device).unsqueeze(1)
    zeros = torch.zeros_like(valid)  # adding them repeats the boxes for every image
    boxes = boxes.unsqueeze(0) + zeros.unsqueeze(-1).to(boxes)
    return grouped_nms(boxes, scores + zeros.to(scores), groups + zeros.to(groups), valid, iou_threshold, limit)
