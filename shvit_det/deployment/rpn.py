"""The region proposal head for inference, which computes its finest level from the source of that level."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from mmdet.models.dense_heads import RPNHead
from torch import Tensor, nn

from ..models.composition import TransposedConv, border, is_plain_conv, overwrite_border
from ..models.pyramid import FeaturePyramid
from ..models.rpn import SHViTRPNHead
from .backends.convolutions import FusedConv, FusedPointwiseConv
from .layer_replacement import deployed_conv, replaces_methods
from .neck import composed_layer


class ComposedRPNConv(nn.Module):
    """The RPN's convolution and ReLU on the finest level, computed from the source of that level.

    On stride 4 that convolution costs twice as much as the composed kernel, the neck's layer for the level composed
    with it; only the outermost pixels have to be computed from the level itself.

    Shapes:
        The source (B, C + 1, H, W) and the level (B, C, 4 * H, 4 * W) -> (B, out_channels, 4 * H, 4 * W).
    """

    def __init__(self, composed: TransposedConv, conv: nn.Conv2d) -> None:
        super().__init__()
        self.hidden = composed_layer(composed, conv.weight.dtype, relu=True)
        self.border = FusedConv(conv.weight, conv.bias, relu=True)

    def forward(self, source: Tensor, level: Tensor) -> Tensor:
        edges = level[:, :, :2], level[:, :, -2:], level[..., :2], level[..., -2:]
        return overwrite_border(self.hidden(source), border(self.border, edges))


def forward_rpn(
    head: Any, num_scores: int, finest_layer: nn.Module | None, x: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Replace an RPN's ``forward``: ``rpn_conv`` includes the ReLU, ``rpn_outputs`` are scores and then boxes.

    ``rpn_finest`` is used if the levels know that ``finest_layer`` computed the finest of them: the neck's layer that
    it was composed with.
    """
    outputs = []
    if isinstance(x, FeaturePyramid) and x.origin is not None and x.origin.conv is finest_layer:
        source, (finest, *levels) = x.origin.source, x.peek()
        outputs.append(head.rpn_outputs(head.rpn_finest(source, finest)))
    else:
        levels = list(x)
    outputs += [head.rpn_outputs(head.rpn_conv(level)) for level in levels]
    return [each[:, :num_scores] for each in outputs], [each[:, num_scores:] for each in outputs]


def select_before_sorting(
    head: Any,
    cls_score_list: Sequence[Tensor],
    bbox_pred_list: Sequence[Tensor],
    score_factor_list: Sequence[Any],
    mlvl_priors: Sequence[Tensor],
    img_meta: dict[str, Any],
    cfg: Any = None,
    **options: Any,
) -> Any:
    """Replace an RPN's ``_predict_by_feat_single``: leave the best positions of each level to it, in their order.

    It takes the best ``nms_pre`` of a level by sorting all of them, 200,000 on the finest. The arguments are mmdet's.
    """
    most = (head.test_cfg if cfg is None else cfg).get('nms_pre', -1)
    left = []
    for scores, boxes, priors in zip(cls_score_list, bbox_pred_list, mlvl_priors, strict=True):
        flat = scores.permute(1, 2, 0).flatten()
        if 0 < most < len(flat):
            best = best_in_order(flat.sigmoid(), most)
            boxes = boxes.permute(1, 2, 0).reshape(-1, 4)[best].t()[:, :, None]
            scores, priors = flat[best][None, :, None], priors[best]
        left.append((scores, boxes, priors))
    scores_left, boxes_left, priors_left = (list(levels) for levels in zip(*left, strict=True))
    original = type(head)._predict_by_feat_single
    return original(head, scores_left, boxes_left, score_factor_list, priors_left, img_meta, cfg, **options)


def best_in_order(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the highest scores, ascending; of equal ones the first, as a stable sort finds them."""
    least = scores.topk(count, sorted=False).values.min()
    better, equal = (scores > least).nonzero().flatten(), (scores == least).nonzero().flatten()
    if len(better) + len(equal) < count:  # NaN
        return scores.argsort(descending=True, stable=True)[:count].sort().values
    return torch.cat((better, equal[: count - len(better)])).sort().values


def single_conv(head: Any) -> nn.Conv2d | None:
    """Return the 3x3 convolution of an RPN of mmdet's kind or ours, None where it has several or is something else."""
    if type(head) not in (RPNHead, SHViTRPNHead) or replaces_methods(head):
        return None
    if not all(is_plain_conv(conv, 1) and conv.bias is not None for conv in (head.rpn_cls, head.rpn_reg)):
        return None
    return head.rpn_conv if is_plain_conv(head.rpn_conv, 3) and head.rpn_conv.bias is not None else None


def fuse_rpn(head: Any, conv: nn.Conv2d, finest: tuple[TransposedConv, nn.Module] | None) -> None:
    """Make an RPN compute its only convolution and the ReLU as one layer, and scores and boxes as one, in place.

    ``finest`` is the neck's layer for the finest level, composed with ``conv`` and by itself; without it, that level is
    computed like the others.
    """
    scores, boxes = head.rpn_cls, head.rpn_reg
    head.rpn_conv = nn.Sequential(OrderedDict(conv=deployed_conv(conv, relu=True)))
    head.rpn_outputs = FusedPointwiseConv(
        torch.cat((scores.weight, boxes.weight)), torch.cat((scores.bias, boxes.bias))
    )
    if finest is not None:
        head.rpn_finest = ComposedRPNConv(finest[0], conv)
    head.forward = partial(forward_rpn, head, scores.out_channels, None if finest is None else finest[1])
    if head.use_sigmoid_cls:
        head._predict_by_feat_single = partial(select_before_sorting, head)
    del head.rpn_cls, head.rpn_reg
