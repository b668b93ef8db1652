"""Masks of detections in the size of the image, by operations that every runtime has."""

from typing import Any

import torch
from torch import Tensor


def paste_masks(probabilities: Tensor, boxes: Tensor, height: Any, width: Any, threshold: float) -> Tensor:
    """Return the masks of boxes in the size of their image, as mmdet's ``FCNMaskHead`` pastes them.

    mmdet samples bilinearly, which is separable: rows and columns have weights of their own, and a mask is a product of
    three matrices. A mask ends one pixel outside of its box, as mmdet's does. A pixel whose probability is at least the
    threshold belongs to the object.

    Shapes:
        Samples in each box (M, S, S), boxes in pixels of the image (M, 4) -> (M, height, width), bool.
    """
    size = probabilities.shape[-1]
    left, top, right, bottom = (side.unsqueeze(1) for side in boxes.unbind(1))
    rows, columns = _sampling_weights(height, top, bottom, size), _sampling_weights(width, left, right, size)
    return rows @ probabilities @ columns.transpose(1, 2) >= threshold


def _sampling_weights(length: Any, first: Tensor, last: Tensor, size: int) -> Tensor:
    """Return the weight of each of ``size`` samples between ``first`` and ``last`` in every pixel of a row or column.

    Shapes:
        (M, 1), (M, 1) -> (M, length, size).
    """
    pixels = torch.arange(length, device=first.device).to(first)
    place = (pixels + 0.5 - first) / (last - first) * 2 - 1
    place = torch.where(last > first, place, torch.zeros_like(place))  # mmdet takes the centre of an empty box
    sample = ((place + 1) * size - 1) / 2
    weights = (1 - (sample.unsqueeze(-1) - torch.arange(size, device=first.device).to(first)).abs()).clamp(min=0)
    inside = (pixels >= first.floor() - 1) & (pixels < last.ceil() + 1)
    return torch.where(inside.unsqueeze(-1), weights, torch.zeros_like(weights))
