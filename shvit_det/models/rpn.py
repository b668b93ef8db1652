"""A region proposal head that starts from what the neck computed its finest level from, where that is cheaper."""

from typing import Any

import torch
from mmdet.models.dense_heads import RPNHead
from torch import Tensor
from torch.nn.functional import conv2d

from .composition import SIDES, TransposedConv, autocast_disabled, border, compose_conv, is_plain_conv, overwrite_border
from .pyramid import FeaturePyramid, Origin


class SHViTRPNHead(RPNHead):
    """mmdet's RPN, whose 3x3 convolution on the finest level is composed with the neck's layers where that pays.

    :class:`shvit_det.SHViTFPN` computes its finest level by one transposed convolution on the stride-16 lateral. The
    3x3 convolution on that level composes with it into one kernel on the lateral, at half the operations. Only the
    outermost pixels differ; they are computed separately. Results, gradients, parameters and their names are those of
    mmdet's head, up to rounding. With another neck it computes exactly as mmdet's head.

    ``registry.py`` registers it by name, so that mmdet is imported only where a head is built.

    Shapes:
        One (B, in_channels, H, W) per level -> scores (B, anchors, H, W) and boxes (B, 4 * anchors, H, W) per level.
    """

    def forward(self, x: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
        if torch.compiler.is_compiling() or not isinstance(x, FeaturePyramid) or not self._supports(x.origin):
            return super().forward(tuple(x))  # a plain tuple, which compilers follow
        origin, conv = x.origin, self.rpn_conv
        assert origin is not None
        with autocast_disabled(origin.source.device):
            composed = compose_conv(origin.conv, conv)
        sides = border(lambda strip: conv2d(strip, conv.weight, conv.bias), edges(origin))
        hidden = _BorderedReLU.apply(composed(origin.source), *sides)
        finest_scores, finest_boxes = self.rpn_cls(hidden), self.rpn_reg(hidden)
        scores, boxes = super().forward(x.peek()[1:])
        return [finest_scores, *scores], [finest_boxes, *boxes]

    def _supports(self, origin: Origin | None) -> bool:
        """Return whether the finest level can start from the origin with the same result, and whether that pays.

        The result is the same if the head has mmdet's ``forward_single`` and one unmodified 3x3 convolution.
        """
        if origin is None or not isinstance(origin.conv, TransposedConv):  # of a deployed neck it is a layer
            return False
        replaced = 'forward_single' in vars(self) or type(self).forward_single is not RPNHead.forward_single
        conv = self.rpn_conv
        if replaced or not is_plain_conv(conv, 3) or conv.weight.dtype != origin.conv.weight.dtype:
            return False
        return composing_conv_pays(origin)


def composing_conv_pays(origin: Origin) -> bool:
    """Return whether a 3x3 convolution on a level takes fewer operations composed with the layer before it."""
    batch, channels, height, width = origin.source.shape  # one channel of ones
    stride, kernel = origin.conv.stride, origin.conv.weight.shape[-1]
    positions, taps = batch * height * width, (kernel + 2) ** 2
    sides = 2 * batch * (height + width) * (kernel**2 + 9 * stride)
    composed = positions * taps + sides + channels * 9 * taps  # per pair of channels, the last for composing
    return composed < positions * stride**2 * 9


def edges(origin: Origin) -> list[Tensor]:
    """Return the two outermost rows and columns of the level, as :func:`.composition.border` takes them.

    They are computed from the outermost rows and columns of the source, which is enough if the stride is above 2.
    Slices of the level would each allocate a gradient of the level's size in the backward pass.
    """
    x, enlarge = origin.source, origin.conv
    return [
        enlarge(x[:, :, :1])[:, :, :2],
        enlarge(x[:, :, -1:])[:, :, -2:],
        enlarge(x[..., :1])[..., :2],
        enlarge(x[..., -1:])[..., -2:],
    ]


class _BorderedReLU(torch.autograd.Function):
    """Overwrites the outermost pixels of a map and applies ReLU, both in place.

    Assignments to slices would do too, but in the backward pass each of them copies the gradient of the whole map.
    """

    @staticmethod
    def forward(hidden: Tensor, *sides: Tensor) -> Tensor:
        return overwrite_border(hidden, sides).relu_()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.mark_dirty(inputs[0])
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        (hidden,) = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, hidden, 0)
        sides = [grad[place].clone() for place in SIDES]
        for place in SIDES:
            grad[place] = 0
        return (grad, *sides)
