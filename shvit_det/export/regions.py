"""The second stage: features of regions, their classes and boxes, and their masks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align

from .dense import decode

SPARE_SIDE = 8.0


def pool(extractor: Any, features: Sequence[Tensor], regions: Tensor) -> Tensor:
    """Return the features of regions, each from the level for its size, as mmdet's ``SingleRoIExtractor`` does.

    Args:
        extractor: The extractor; its RoIAlign layers are read, not called.
        features: Feature maps, fine to coarse; the extractor takes the first ones.
        regions: Image, left, top, right, bottom; in pixels of the input.

    Shapes:
        (M, 5) -> (M, C, *output_size).
    """
    sides = regions[:, 3:] - regions[:, 1:3]
    ratio = (sides[:, 0] * sides[:, 1]).sqrt() / extractor.finest_scale + 1e-6
    levels = torch.zeros_like(ratio, dtype=torch.long)
    for power in range(1, extractor.num_inputs):
        levels = levels + (ratio >= 2**power).long()  # the logarithm rounded down, without one
    places = [(levels == level).nonzero().flatten() for level in range(extractor.num_inputs)]
    pooled = [
        roi_align(
            feature, regions[own], layer.output_size, layer.spatial_scale, layer.sampling_ratio, bool(layer.aligned)
        )
        for feature, own, layer in zip(features, places, extractor.roi_layers, strict=False)
    ]
    order = torch.cat(places)
    numbers = torch.arange(order.shape[0], device=order.device)
    return torch.cat(pooled)[torch.zeros_like(order).scatter(0, order, numbers)]


def with_one_more(regions: Tensor) -> Tensor:
    """Return regions and a small one, (M, 5) -> (M + 1, 5): not every layer of every runtime takes an empty batch."""
    return torch.cat((regions, regions.new_tensor([[0.0, 0.0, 0.0, SPARE_SIDE, SPARE_SIDE]])))


def classify(
    head: Any, extractor: Any, features: Sequence[Tensor], regions: Tensor, size: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the boxes and scores of every region for every class.

    Args:
        head: mmdet's box head.
        extractor: What pools its features.
        features: Feature maps, fine to coarse.
        regions: Image, left, top, right, bottom.
        size: Width and height of the image, without padding.

    Shapes:
        regions (M, 5), size (2,) -> boxes (M, classes, 4) and scores (M, classes).
    """
    logits, deltas = (out[:-1] for out in head(pool(extractor, features, with_one_more(regions))))
    scores = logits.softmax(-1)[:, :-1]
    number = 1 if head.reg_class_agnostic else head.num_classes
    priors = regions[:, 1:].unsqueeze(1).repeat(1, number, 1).reshape(-1, 4)
    boxes = decode(head.bbox_coder, priors, deltas.reshape(-1, 4), size).reshape(-1, number, 4)
    return (boxes.repeat(1, head.num_classes, 1) if number == 1 else boxes), scores


def mask_probabilities(
    head: Any, extractor: Any, features: Sequence[Tensor], regions: Tensor, labels: Tensor
) -> Tensor:
    """Return the mask of every region for its class, within its box.

    Args:
        head: mmdet's mask head.
        extractor: What pools its features.
        features: Feature maps, fine to coarse.
        regions: Image, left, top, right, bottom.
        labels: Their classes.

    Shapes:
        (M, 5), (M,) -> (M, S, S).
    """
    logits = head(pool(extractor, features, with_one_more(regions)))[:-1]
    chosen = torch.zeros_like(labels) if head.class_agnostic else labels
    own: Tensor = logits[torch.arange(chosen.shape[0], device=chosen.device), chosen]
    return own.sigmoid()


def paste(probabilities: Tensor, boxes: Tensor, height: Any, width: Any, threshold: float) -> Tensor:
    """Return masks in the size of an image.

    What mmdet samples bilinearly is separable: rows and columns have weights of their own, so that a mask is a product
    of three matrices. As there, the result ends one pixel around the box.

    Args:
        probabilities: In the boxes.
        boxes: In pixels of the image.
        height: Of the image.
        width: Of the image.
        threshold: From which on a pixel belongs to the object.

    Shapes:
        (M, S, S), (M, 4) -> (M, height, width), bool.
    """
    size = probabilities.shape[-1]
    left, top, right, bottom = (side.unsqueeze(1) for side in boxes.unbind(1))
    rows, columns = _weights(height, top, bottom, size), _weights(width, left, right, size)
    return rows @ probabilities @ columns.transpose(1, 2) >= threshold


def _weights(length: Any, first: Tensor, last: Tensor, size: int) -> Tensor:
    """Return how much of each of ``size`` samples between ``first`` and ``last`` every pixel of a line takes.

    Shapes:
        (M, 1), (M, 1) -> (M, length, size).
    """
    pixels = torch.arange(length, device=first.device).to(first)
    place = (pixels + 0.5 - first) / (last - first) * 2 - 1
    place = torch.where(last > first, place, torch.zeros_like(place))  # mmdet takes the centre for an empty box
    sample = ((place + 1) * size - 1) / 2
    near = (1 - (sample.unsqueeze(-1) - torch.arange(size, device=first.device).to(first)).abs()).clamp(min=0)
    inside = (pixels >= first.floor() - 1) & (pixels < last.ceil() + 1)
    return torch.where(inside.unsqueeze(-1), near, torch.zeros_like(near))
