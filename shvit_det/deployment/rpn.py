"""The region proposal head for inference, and its convolution on the finest level, which the neck computes."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import RPNHead
from torch import Tensor, nn

from ..models.composition import TransposedConv, redo_border
from ..models.rpn import SHViTRPNHead
from ..models.unmodified import is_stock
from .backends.convolutions import FusedConv, FusedPointwiseConv
from .backends.packed import Constants
from .backends.packing import CONVS, is_simple, replaces_methods
from .backends.winograd import WinogradTransposedConv
from .layers import plain
from .neck import FusedSHViTFPN
from .precision import without_autocast


class Pyramid(tuple):
    """The levels of a neck, fine to coarse, and what the RPN's convolution makes of the finest one.

    What changes a level in place changes its version, and what makes another level makes another tuple; the RPN then
    computes its convolution itself.
    """

    _hidden: Tensor | None
    _version: int

    @classmethod
    def of(cls, levels: Sequence[Tensor], hidden: Tensor) -> 'Pyramid':
        made = cls(levels)
        made._hidden, made._version = hidden, levels[0]._version
        return made

    def take(self) -> Tensor | None:
        """Return, once, the RPN's convolution of the finest level as it is; None if the level has changed."""
        hidden, self._hidden = self._hidden, None  # the memory is wanted for what follows
        return hidden if self[0]._version == self._version else None


class NeckWithRPN(Constants):
    """The fused neck, which also makes the RPN's convolution and ReLU of the finest level, from the stride-16 lateral.

    On stride 4 that convolution costs twice as much as the composed kernel; only the outermost pixels have to be
    computed from the level itself.

    Args:
        neck: The fused neck.
        hidden: The composed convolution.
        conv: The RPN's own convolution.
    """

    compiled_method = 'levels'

    def __init__(self, neck: FusedSHViTFPN, hidden: TransposedConv, conv: nn.Conv2d) -> None:
        super().__init__()
        self.neck = neck
        dtype = conv.weight.dtype
        self.hidden = WinogradTransposedConv(
            hidden.weight.to(dtype), hidden.bias.to(dtype), hidden.stride, hidden.padding, relu=True
        )
        self.border = FusedConv(conv.weight, conv.bias, relu=True)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if torch.is_inference_mode_enabled():  # whose tensors have no versions
            with torch.inference_mode(False), torch.no_grad():
                return Pyramid.of(*self.levels(inputs))
        return Pyramid.of(*self.levels(inputs))

    @without_autocast
    def levels(self, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the levels, fine to coarse, and the RPN's convolution and ReLU of the finest."""
        outs, finest = self.neck.levels_and_source(inputs)
        return outs, redo_border(self.hidden(finest), outs[0], self.border, ring=1)


class RPNForward:
    """Stands in for an RPN's ``forward``: scores and boxes come from one layer.

    Args:
        head: Its ``rpn_conv`` has the ReLU within, its ``rpn_outputs`` are scores and boxes.
        scores: How many of the outputs are scores.
    """

    def __init__(self, head: Any, scores: int) -> None:
        self.head = head
        self.scores = scores

    def __call__(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        hidden = x.take() if isinstance(x, Pyramid) else None
        outputs = []
        for level in x:
            outputs.append(self.head.rpn_outputs(self.head.rpn_conv(level) if hidden is None else hidden))
            hidden = None
        return [each[:, : self.scores] for each in outputs], [each[:, self.scores :] for each in outputs]


def single_conv(head: Any) -> nn.Conv2d | None:
    """Return the 3x3 convolution of an RPN of mmdet's kind or ours, None where it has several or is something else."""
    if type(head) not in (RPNHead, SHViTRPNHead) or replaces_methods(head):
        return None
    convs = head.rpn_conv, head.rpn_cls, head.rpn_reg
    if not all(is_stock(conv, *CONVS) and is_simple(conv) and conv.bias is not None for conv in convs):
        return None
    geometries = [(conv.kernel_size, conv.stride, conv.padding, conv.groups) for conv in convs]
    one, three = ((1, 1), (1, 1), (0, 0), 1), ((3, 3), (1, 1), (1, 1), 1)
    return head.rpn_conv if geometries == [three, one, one] else None


def fuse_rpn(head: Any, conv: nn.Conv2d) -> None:
    """Let an RPN compute its only convolution and the ReLU as one layer, and scores and boxes as one, in place."""
    scores, boxes = head.rpn_cls, head.rpn_reg
    head.rpn_conv = nn.Sequential(OrderedDict(conv=plain(conv, relu=True)))
    head.rpn_outputs = FusedPointwiseConv(
        torch.cat((scores.weight, boxes.weight)), torch.cat((scores.bias, boxes.bias))
    )
    head.forward = RPNForward(head, scores.out_channels)
    del head.rpn_cls, head.rpn_reg
