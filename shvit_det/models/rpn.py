"""A region proposal head that takes its finest level from where the neck took it."""

from typing import Any

import torch
from mmdet.models.dense_heads import RPNHead
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from .composition import compose_conv, supports_conv, without_autocast
from .pyramid import FeaturePyramid, Origin

ALL = slice(None)
INNER = slice(1, -1)
SIDES = (  # the outermost pixels of a map, each once: top, bottom, left, right
    (ALL, ALL, slice(None, 1), ALL),
    (ALL, ALL, slice(-1, None), ALL),
    (ALL, ALL, INNER, slice(None, 1)),
    (ALL, ALL, INNER, slice(-1, None)),
)


class SHViTRPNHead(RPNHead):
    """mmdet's RPN, whose 3x3 convolution on the finest level is composed with the neck's layers where that pays.

    The finest level is :class:`shvit_det.SHViTFPN`'s stride-16 lateral, enlarged four times in each direction, so that
    a convolution on it costs twice as much as the one kernel on the lateral that does the same. Only the outermost
    pixels differ and are computed by themselves. Results, gradients, parameters and their names are those of mmdet's
    head, up to rounding; with another neck it is that head.

    ``shvit_det/__init__.py`` registers it by name, so that mmdet is imported only where a head is built.

    Shapes:
        One (B, in_channels, H, W) per level -> scores (B, anchors, H, W) and boxes (B, 4 * anchors, H, W) per level.
    """

    def forward(self, x: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
        if torch.compiler.is_compiling() or not isinstance(x, FeaturePyramid) or not self._starts_at(x.origin):
            scores, boxes = super().forward(tuple(x))  # a plain tuple, which compilers follow
            return scores, boxes
        origin, conv = x.origin, self.rpn_conv
        assert origin is not None
        with without_autocast(origin.source.device):
            composed = compose_conv(origin.conv, conv)
        hidden = _BorderedReLU.apply(composed(origin.source), *border(origin, conv))
        finest_scores, finest_boxes = self.rpn_cls(hidden), self.rpn_reg(hidden)
        scores, boxes = super().forward(x.peek()[1:])
        return [finest_scores, *scores], [finest_boxes, *boxes]

    def _starts_at(self, origin: Origin | None) -> bool:
        """Return whether starting at the origin pays and is equal: a level meets mmdet's one convolution, unchanged."""
        if origin is None:
            return False
        replaced = 'forward_single' in vars(self) or type(self).forward_single is not RPNHead.forward_single
        conv = self.rpn_conv
        if replaced or not supports_conv(conv) or conv.weight.dtype != origin.conv.weight.dtype:
            return False
        return composing_pays(origin)


def composing_pays(origin: Origin) -> bool:
    """Return whether a 3x3 convolution on a level takes fewer operations composed with what made the level."""
    batch, channels, height, width = origin.source.shape
    stride, kernel = origin.conv.stride, origin.conv.weight.shape[-1]
    positions, taps = batch * height * width, (kernel + 2) ** 2
    sides = 2 * batch * (height + width) * (kernel**2 + 9 * stride)
    composed = positions * taps + sides + (channels + 1) * 9 * taps  # per pair of channels, the last for composing
    return composed < positions * stride**2 * 9


def border(origin: Origin, conv: nn.Conv2d) -> list[Tensor]:
    """Return the outermost pixels of a 3x3 convolution on a level: its top, bottom, left and right, as ``SIDES``.

    They see two rows or columns of the level, which the outermost of the source make alone if the stride is above 2.
    """
    x, enlarge = origin.source, origin.conv
    strips = (
        pad(enlarge(x[:, :, :1])[:, :, :2], (1, 1, 1, 0)),
        pad(enlarge(x[:, :, -1:])[:, :, -2:], (1, 1, 0, 1)),
        pad(enlarge(x[..., :1])[..., :2], (1, 0, 0, 0)),
        pad(enlarge(x[..., -1:])[..., -2:], (0, 1, 0, 0)),
    )
    return [conv2d(strip, conv.weight, conv.bias) for strip in strips]


class _BorderedReLU(torch.autograd.Function):
    """Overwrites the outermost pixels of a map and applies ReLU, both in place.

    Assignments to slices would do too, but in the backward pass each of them copies the gradient of the whole map.
    """

    @staticmethod
    def forward(hidden: Tensor, *sides: Tensor) -> Tensor:
        for place, side in zip(SIDES, sides, strict=True):
            hidden[place] = side
        return hidden.relu_()

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
