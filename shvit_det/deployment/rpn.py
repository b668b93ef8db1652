"""The region proposal head for inference, and its convolution on the finest level, which the neck computes."""

from typing import Any

import torch
from mmdet.models.dense_heads import RPNHead
from torch import Tensor, nn

from ..composition import TransposedConv, redo_border
from ..rpn import SHViTRPNHead
from .convolutions import FusedConv, FusedPointwiseConv
from .layers import plain
from .neck import FusedSHViTFPN
from .winograd import WinogradTransposedConv


class Handover:
    """Carries what the neck has computed for the RPN past the feature maps between them."""

    def __init__(self) -> None:
        self._feature: Tensor | None = None
        self._hidden: Tensor | None = None

    def put(self, feature: Tensor, hidden: Tensor) -> None:
        self._feature, self._hidden = feature, hidden

    def take(self, feature: Tensor) -> Tensor | None:
        """Return, once, what was computed for this feature map; None if it is another one."""
        hidden = self._hidden if feature is self._feature else None
        if hidden is not None:
            self._feature = self._hidden = None
        return hidden


class NeckWithRPN(nn.Module):
    """The fused neck, which also makes the RPN's convolution and ReLU of the finest level, from the stride-16 lateral.

    On stride 4 that convolution costs twice as much as the composed kernel; only the outermost pixels have to be
    computed from the level itself.

    Args:
        neck: The fused neck.
        hidden: The composed convolution.
        conv: The RPN's own convolution.
        handover: Where the RPN finds the result.
    """

    def __init__(self, neck: FusedSHViTFPN, hidden: TransposedConv, conv: nn.Conv2d, handover: Handover) -> None:
        super().__init__()
        self.neck = neck
        dtype = conv.weight.dtype
        self.hidden = WinogradTransposedConv(
            hidden.weight.to(dtype), hidden.bias.to(dtype), hidden.stride, hidden.padding, relu=True
        )
        self.border = FusedConv(conv.weight, conv.bias, relu=True)
        self.handover = handover

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        outs, finest = self.neck.levels_and_source(inputs)
        hidden = redo_border(self.hidden(finest), outs[0], self.border, ring=1)
        self.handover.put(outs[0], hidden)
        return outs


class RPNConv(nn.Module):
    """The RPN's convolution and ReLU, which takes what the neck has already computed.

    Args:
        conv: The convolution.
        handover: Where the neck leaves it; None if it does not.
    """

    def __init__(self, conv: nn.Conv2d, handover: Handover | None) -> None:
        super().__init__()
        self.conv = plain(conv, relu=True)
        self.handover = handover

    def forward(self, x: Tensor) -> Tensor:
        hidden = None if self.handover is None else self.handover.take(x)
        return self.conv(x) if hidden is None else hidden


class RPNForward:
    """Stands in for an RPN's ``forward_single``: scores and boxes come from one layer.

    Args:
        head: Its ``rpn_conv`` is a :class:`RPNConv`, its ``rpn_outputs`` the layer.
        scores: How many of the outputs are scores.
    """

    def __init__(self, head: Any, scores: int) -> None:
        self.head = head
        self.scores = scores

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.head.rpn_outputs(self.head.rpn_conv(x))
        return outputs[:, : self.scores], outputs[:, self.scores :]


def single_conv(head: Any) -> nn.Conv2d | None:
    """Return the 3x3 convolution of an RPN of mmdet's kind or ours, None where it has several or is something else."""
    if type(head) not in (RPNHead, SHViTRPNHead):
        return None
    conv = head.rpn_conv
    simple = isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and conv.padding == (1, 1)
    return conv if simple and conv.stride == (1, 1) else None


def fuse_rpn(head: Any, conv: nn.Conv2d, handover: Handover | None) -> None:
    """Let an RPN compute its only convolution and the ReLU as one layer, and scores and boxes as one, in place."""
    scores, boxes = head.rpn_cls, head.rpn_reg
    head.rpn_conv = RPNConv(conv, handover)
    head.rpn_outputs = FusedPointwiseConv(
        torch.cat((scores.weight, boxes.weight)), torch.cat((scores.bias, boxes.bias))
    )
    head.forward_single = RPNForward(head, scores.out_channels)
    del head.rpn_cls, head.rpn_reg
