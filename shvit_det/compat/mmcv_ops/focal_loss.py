"""Sigmoid focal loss (arXiv 1708.02002) and its gradient: what ``mmcv.ops.sigmoid_focal_loss`` calls.

``weight`` holds one weight a class, or nothing. The weight of a row's target counts for the whole row, and is 1 where
the target is no class (there the compiled op reads memory beyond the weights).
"""

import torch
from torch import Tensor
from torch.nn import functional

from .precision import widen

__all__ = ['sigmoid_focal_loss_backward', 'sigmoid_focal_loss_forward']


def sigmoid_focal_loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of every logit to ``output``.

    Shapes:
        logits and output (N, C), target (N,) int64 in [0, C], where C is the background, weight (C,) or (0,).
    """
    _, balance, margin = _terms(logits, target, weight, alpha)
    output.copy_(-balance * torch.sigmoid(-margin) ** gamma * functional.logsigmoid(margin))


def sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of every logit's loss to ``grad_input``; the shapes are those of the forward op."""
    sign, balance, margin = _terms(logits, target, weight, alpha)
    miss = torch.sigmoid(-margin)
    slope = gamma * torch.sigmoid(margin) * functional.logsigmoid(margin) - miss
    grad_input.copy_(sign * balance * miss**gamma * slope)


def _terms(logits: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return sign, weight and margin of each logit, all (N, C).

    The sign is 1 where the class is the target and -1 elsewhere. With it both cases have one formula, and
    ``logsigmoid`` of the margin, the signed logit, replaces log(p) and log(1 - p), which underflow.
    """
    logits, weight = widen(logits, weight)
    is_target = target[:, None] == torch.arange(logits.size(1), device=logits.device)
    sign = is_target.to(logits.dtype) * 2 - 1
    balance = 0.5 + sign * (alpha - 0.5)  # alpha, or 1 - alpha
    if len(weight):
        is_class = (target >= 0) & (target < len(weight))
        balance = balance * weight[target.clamp(0, len(weight) - 1)].where(is_class, 1.0)[:, None]
    return sign, balance, sign * logits
