"""Dense heads with anchors: from feature maps to candidates, for a batch of images of one size."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox
from torch import Tensor

from .operators import at_most, rows


class Candidates(NamedTuple):
    """What a dense head found, the best of every level; (B, N, 4) boxes and (B, N) of the others."""

    boxes: Tensor
    scores: Tensor
    groups: Tensor
    valid: Tensor


def decode(coder: Any, priors: Tensor, deltas: Tensor, size: Tensor) -> Tensor:
    """Return the boxes that a head predicts, within the image where its coder says so.

    Args:
        coder: mmdet's ``DeltaXYWHBBoxCoder``.
        priors: Anchors or proposals.
        deltas: As the head computes them.
        size: Width and height of the image, without padding.

    Shapes:
        (N, 4), (N, 4) and (2,) -> (N, 4).
    """
    boxes = delta2bbox(
        priors,
        deltas,
        coder.means,
        coder.stds,
        clip_border=False,
        add_ctr_clamp=coder.add_ctr_clamp,
        ctr_clamp=coder.ctr_clamp,
    )
    return torch.minimum(boxes.clamp(min=0), size.repeat(2)) if coder.clip_border else boxes


def proposals(head: Any, features: tuple[Tensor, ...], config: Any, size: Tensor) -> Candidates:
    """Return the candidates of an RPN head, the groups being levels."""
    scores, deltas, priors, groups = [], [], [], []
    for index, (level_scores, level_deltas, level_priors) in enumerate(_levels(head, features)):
        level_scores = sigmoid(level_scores).squeeze(2)
        best, places = level_scores.topk(at_most(config.nms_pre, level_scores.shape[1]))
        scores.append(best)
        groups.append(torch.full_like(places, index))
        deltas.append(rows(level_deltas, places))
        priors.append(level_priors[places])
    return _candidates(head, scores, deltas, priors, groups, size, -1.0, config)


def classified(head: Any, features: tuple[Tensor, ...], config: Any, size: Tensor) -> Candidates:
    """Return the candidates of a head for many classes, those above its threshold; the groups are classes."""
    scores, deltas, priors, groups = [], [], [], []
    for level_logits, level_deltas, level_priors in _levels(head, features):
        places = _best_places(level_logits, config.nms_pre)
        level_scores = sigmoid(rows(level_logits, places)).flatten(1)
        best, pairs = level_scores.topk(at_most(config.nms_pre, level_scores.shape[1]))
        scores.append(best)
        groups.append(pairs % head.cls_out_channels)
        places = places.gather(1, torch.div(pairs, head.cls_out_channels, rounding_mode='floor'))
        deltas.append(rows(level_deltas, places))
        priors.append(level_priors[places])
    return _candidates(head, scores, deltas, priors, groups, size, config.get('score_thr', 0.0), config)


def sigmoid(x: Tensor) -> Tensor:
    """Return the sigmoid, written out: ONNX Runtime's own gives 0 below about -18, and an RPN ranks by such scores."""
    return 1 / (1 + torch.exp(-x))


def _best_places(logits: Tensor, limit: int) -> Tensor:
    """Return the places where the best ``limit`` pairs of place and class are, in order.

    To find the best of all pairs is much slower: there is one at each of so many places at most, and these are the ones
    whose best class is best.

    Shapes:
        (B, N, classes) -> (B, up to limit).
    """
    best = logits.amax(2)
    return best.topk(at_most(limit, best.shape[1]))[1].sort(dim=1)[0]


def _levels(head: Any, features: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield logits (B, N, classes), deltas (B, N, 4) and anchors (N, 4) of every level."""
    all_logits, all_deltas = head(features)
    sizes = [logits.shape[-2:] for logits in all_logits]
    anchors = head.prior_generator.grid_priors(sizes, all_logits[0].dtype, all_logits[0].device)
    for logits, deltas, priors in zip(all_logits, all_deltas, anchors, strict=True):
        batch = logits.shape[0]
        logits = logits.permute(0, 2, 3, 1).reshape(batch, -1, head.cls_out_channels)
        yield logits, deltas.permute(0, 2, 3, 1).reshape(batch, -1, 4), priors


def _candidates(
    head: Any,
    scores: list[Tensor],
    deltas: list[Tensor],
    priors: list[Tensor],
    groups: list[Tensor],
    size: Tensor,
    threshold: float,
    config: Any,
) -> Candidates:
    all_scores, all_deltas, all_priors = torch.cat(scores, 1), torch.cat(deltas, 1), torch.cat(priors, 1)
    boxes = decode(head.bbox_coder, all_priors.flatten(0, 1), all_deltas.flatten(0, 1), size)
    boxes = boxes.reshape(*all_priors.shape)
    return Candidates(boxes, all_scores, torch.cat(groups, 1), all_scores > threshold)


def large_enough(boxes: Tensor, config: Any) -> Tensor:
    """Return which boxes are larger than the config's smallest, (..., 4) -> (...)."""
    smallest = config.get('min_bbox_size', -1)
    sides = boxes[..., 2:] - boxes[..., :2]
    return (sides > smallest).all(-1) if smallest >= 0 else torch.ones_like(boxes[..., 0], dtype=torch.bool)
