"""Focal losses (arXiv 1708.02002) and their gradients: what ``mmcv.ops.focal_loss`` calls.

Results are written to the last tensor of each call. ``weight`` holds one weight a class, or
nothing; the weight of a row's target counts for the whole row, and is 1 where the target is no
class (there the compiled op reads memory beyond the weights).
"""

import torch
from torch import Tensor
from torch.nn import functional

from .precision import widen

__all__ = [
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
]


def sigmoid_focal_loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of every logit.

    Shapes: logits and output (N, C), target (N,) int64 in [0, C], where C is the background.
    """
    (logits,) = widen(logits)
    sign, balance = _sides(logits, target, alpha)
    margin = sign * logits
    loss = -balance * torch.sigmoid(-margin) ** gamma * functional.logsigmoid(margin)
    output.copy_(loss * _row_weight(weight, target)[:, None])


def sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of every logit's loss; the shapes are those of the forward op."""
    (logits,) = widen(logits)
    sign, balance = _sides(logits, target, alpha)
    margin = sign * logits
    miss = torch.sigmoid(-margin)
    slope = gamma * torch.sigmoid(margin) * functional.logsigmoid(margin) - miss
    gradient = sign * balance * miss**gamma * slope
    grad_input.copy_(gradient * _row_weight(weight, target)[:, None])


def _sides(logits: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """+1 and alpha where the class is the target, -1 and 1 - alpha elsewhere; each (N, C).

    With the sign both sides have one formula, and ``logsigmoid`` of the signed logit replaces
    log(p) and log(1 - p), which underflow.
    """
    is_target = target[:, None] == torch.arange(logits.size(1), device=logits.device)
    sign = is_target.to(logits.dtype) * 2 - 1
    return sign, 0.5 + sign * (alpha - 0.5)


def softmax_focal_loss_forward(
    softmax: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of every row; a negative target has none.

    Shapes: softmax (N, C), probabilities; target (N,) int64 below C; output (N,).
    """
    (softmax,) = widen(softmax)
    hit = _hit(softmax, target)
    loss = -alpha * (1 - hit) ** gamma * _log(hit) * _row_weight(weight, target)
    output.copy_(loss.masked_fill(target < 0, 0))


def softmax_focal_loss_backward(
    softmax: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the derivative by the logits before the softmax to ``grad_input`` (N, C).

    ``buff`` (N,) receives the factor that all logits of a row share.
    """
    (softmax,) = widen(softmax)
    hit = _hit(softmax, target)
    # A probability that rounds to 1 would give a negative power of 0 for gamma < 1.
    miss = (1 - hit).clamp(min=torch.finfo(hit.dtype).tiny)
    factor = alpha * (gamma * miss ** (gamma - 1) * hit * _log(hit) - miss**gamma)
    factor = (factor * _row_weight(weight, target)).masked_fill(target < 0, 0)
    is_target = target[:, None] == torch.arange(softmax.size(1), device=softmax.device)
    buff.copy_(factor)
    grad_input.copy_(factor[:, None] * (is_target.to(softmax.dtype) - softmax))


def _hit(softmax: Tensor, target: Tensor) -> Tensor:
    """The probability of each row's target, (N,); of class 0 where the target is negative."""
    return softmax.gather(1, target.clamp(min=0)[:, None]).squeeze(1)


def _log(probability: Tensor) -> Tensor:
    return probability.clamp(min=torch.finfo(probability.dtype).tiny).log()


def _row_weight(weight: Tensor, target: Tensor) -> Tensor:
    """The weight of each row's target: (N,), or (1,) if there are no weights."""
    (weight,) = widen(weight)
    num_classes = len(weight)
    if num_classes == 0:
        return weight.new_ones(1)
    is_class = (target >= 0) & (target < num_classes)
    return torch.where(is_class, weight[target.clamp(0, num_classes - 1)], 1.0)
