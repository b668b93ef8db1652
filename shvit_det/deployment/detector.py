"""Whole detectors for inference: what of them can be fused, and in which data type their parts run."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..backbone import SHViT
from ..composition import compose_conv
from ..errors import UsageError
from ..neck import SHViTFPN
from .backbone import FusedSHViT
from .masks import fuse_mask_branch
from .neck import FusedSHViTFPN, compose_finer
from .packing import pack_layers
from .roi_align import RoIFeatures, replace_roi_layers
from .rpn import Handover, NeckWithRPN, fuse_rpn, single_conv


def fuse_detector(detector: Any, channels_last: bool) -> None:
    """Replace the parts of a detector, in place, by their fused forms."""
    neck = getattr(detector, 'neck', None)
    conv = single_conv(getattr(detector, 'rpn_head', None))
    if isinstance(detector.backbone, SHViT):
        detector.backbone = FusedSHViT(detector.backbone, channels_last)
    handover = None
    if isinstance(neck, SHViTFPN):
        finer = compose_finer(neck)
        detector.neck = FusedSHViTFPN(neck, channels_last, finer)
        if conv is not None and neck.num_upsamples >= 2:  # with stride 4, composing it pays
            handover = Handover()
            with torch.no_grad():
                hidden = compose_conv(finer[0], copy.deepcopy(conv).double())
            detector.neck = NeckWithRPN(detector.neck, hidden, conv, handover)
    if conv is not None:
        fuse_rpn(detector.rpn_head, conv, handover)
    pack_layers(detector)
    fuse_mask_branch(detector)
    replace_roi_layers(detector)


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
        if not isinstance(extractor.forward, RoIFeatures):
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
