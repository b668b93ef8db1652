"""Whole detectors for inference: what of them can be fused, and the RPN's first convolution on the finest level."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..backbone import SHViT
from ..composition import TransposedConv, compose_conv, redo_border
from ..errors import UsageError
from ..neck import SHViTFPN
from ..rpn import SHViTRPNHead
from .backbone import FusedSHViT
from .convolutions import FusedTransposedConv
from .layers import plain
from .neck import FusedSHViTFPN, compose_finer
from .packing import pack_layers
from .roi_align import replace_roi_layers


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
    """The fused neck, which also applies the RPN's convolution to the finest level, from the stride-16 lateral.

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
        self.hidden = FusedTransposedConv(hidden.weight.to(dtype), hidden.bias.to(dtype), hidden.stride, hidden.padding)
        self.conv = plain(conv)
        self.handover = handover

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        outs, finest = self.neck.levels_and_source(inputs)
        hidden = redo_border(self.hidden(finest), outs[0], self.conv.weight, self.conv.bias)
        self.handover.put(outs[0], hidden)
        return outs


class RPNConv(nn.Module):
    """The RPN's convolution, which takes what the neck has already computed."""

    def __init__(self, conv: nn.Conv2d, handover: Handover) -> None:
        super().__init__()
        self.conv = plain(conv)
        self.handover = handover

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.handover.take(x)
        return self.conv(x) if hidden is None else hidden


def fuse_detector(detector: Any, channels_last: bool) -> None:
    """Replace the parts of a detector, in place, by their fused forms."""
    neck = getattr(detector, 'neck', None)
    rpn_conv = _composable_rpn_conv(detector) if isinstance(neck, SHViTFPN) else None
    if isinstance(detector.backbone, SHViT):
        detector.backbone = FusedSHViT(detector.backbone, channels_last)
    if isinstance(neck, SHViTFPN):
        finer = compose_finer(neck)
        detector.neck = FusedSHViTFPN(neck, channels_last, finer)
        if rpn_conv is not None:
            handover = Handover()
            with torch.no_grad():
                hidden = compose_conv(finer[0], copy.deepcopy(rpn_conv).double())
            detector.neck = NeckWithRPN(detector.neck, hidden, rpn_conv, handover)
            detector.rpn_head.rpn_conv = RPNConv(rpn_conv, handover)
    pack_layers(detector)
    replace_roi_layers(detector)


def _composable_rpn_conv(detector: Any) -> nn.Conv2d | None:
    """Return the RPN's convolution where it is single and the neck makes stride 4, for which composing it pays."""
    head: Any = getattr(detector, 'rpn_head', None)
    if type(head) not in (RPNHead, SHViTRPNHead) or detector.neck.num_upsamples < 2:
        return None
    conv = head.rpn_conv
    simple = isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and conv.padding == (1, 1)
    return conv if simple and conv.stride == (1, 1) else None


class InDtype:
    """A hook that casts floating-point inputs, or outputs, of a module.

    Args:
        dtype: The data type to cast to.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, inputs: Any, outputs: Any = None) -> Any:
        return tree_map(self._cast, inputs if outputs is None else outputs)

    def _cast(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def cast_detector(detector: Any, dtype: torch.dtype) -> None:
    """Let the networks of a detector run in a data type, in place; boxes, scores and masks are computed in float32.

    Raises:
        UsageError: If the detector is of neither of mmdet's one-stage and two-stage kinds, which have the heads that
            this knows.
    """
    if not isinstance(detector, (SingleStageDetector, TwoStageDetector)):
        raise UsageError(
            f'dtype is for one-stage and two-stage detectors, not for a {type(detector).__name__}: '
            'run that under torch.autocast'
        )
    for trunk in (detector.backbone, getattr(detector, 'neck', None)):
        if trunk is not None:
            trunk.to(dtype)
    detector.backbone.register_forward_pre_hook(InDtype(dtype))
    for head in _heads(detector):
        head.to(dtype)
        head.register_forward_pre_hook(InDtype(dtype))
        head.register_forward_hook(InDtype(torch.float32))
    for extractor in _of_roi_head(detector, ('bbox_roi_extractor', 'mask_roi_extractor')):
        extractor.register_forward_pre_hook(InDtype(torch.float32))  # as RoIAlign and the boxes need it


def _heads(detector: Any) -> Iterator[nn.Module]:
    for name in ('rpn_head', 'bbox_head'):
        head = getattr(detector, name, None)
        if isinstance(head, nn.Module):
            yield head
    yield from _of_roi_head(detector, ('bbox_head', 'mask_head'))


def _of_roi_head(detector: Any, names: tuple[str, ...]) -> Iterator[nn.Module]:
    """Return the parts of the RoI head with these names, those of each stage of a cascade by themselves."""
    for name in names:
        part = getattr(getattr(detector, 'roi_head', None), name, None)
        if isinstance(part, nn.ModuleList):
            yield from part
        elif isinstance(part, nn.Module):
            yield part
