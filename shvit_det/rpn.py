"""A region proposal head that takes its finest level from where the neck took it."""

import torch
from mmdet.models.dense_heads import RPNHead
from torch import Tensor, nn
from torch.nn.functional import relu

from .composition import Origin, compose_conv, origin_of, redo_border


class SHViTRPNHead(RPNHead):
    """mmdet's RPN, whose 3x3 convolution on the finest level is composed with the neck's layers where that pays.

    The finest level is a quarter of :class:`shvit_det.SHViTFPN`'s stride-16 lateral, enlarged, so that a convolution on
    it costs twice as much as the one kernel on the lateral that does the same. Only the outermost pixels are computed
    from the level. Results, gradients, parameters and their names are those of mmdet's head, up to rounding; with
    another neck it is that head.

    ``shvit_det/__init__.py`` registers it by name, so that mmdet is imported only where a head is built.

    Shapes:
        One (B, in_channels, H, W) per level -> scores (B, anchors, H, W) and boxes (B, 4 * anchors, H, W) per level.
    """

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        origin = origin_of(x)
        conv = self.rpn_conv
        if origin is None or not isinstance(conv, nn.Conv2d) or not composing_pays(origin):
            scores, boxes = super().forward_single(x)
            return scores, boxes
        with torch.autocast(x.device.type, enabled=False):
            composed = compose_conv(origin.conv, conv)
        hidden = composed(origin.source)
        redo_border(hidden, x, conv.weight, conv.bias)
        hidden = relu(hidden)
        return self.rpn_cls(hidden), self.rpn_reg(hidden)


def composing_pays(origin: Origin) -> bool:
    """Return whether a 3x3 convolution on a level takes fewer operations composed with what made the level."""
    batch, channels, height, width = origin.source.shape
    positions, taps = batch * height * width, (origin.conv.weight.shape[-1] + 2) ** 2
    composed = positions * taps + (channels + 1) * 9 * taps  # per pair of channels: applied, and composed first
    return composed < positions * origin.conv.stride**2 * 9
