"""Detectors for inference: which of their parts are fused, and in which data type the parts run."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

from mmdet.models import dense_heads
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import bbox_heads
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from torch import nn

from ..common.errors import UsageError
from ..models.backbone import SHViT
from ..models.composition import compose_conv
from ..models.neck import SHViTFPN
from ..models.rpn import SHViTRPNHead
from ..models.unmodified import is_unmodified
from .backbone import FusedSHViT
from .layer_replacement import replace_layers
from .masks import fuse_mask_branch
from .neck import FusedSHViTFPN, compose_finer, supports_neck
from .precision import apply_in_float32, call_without_autocast, cast_inputs, widen_outputs
from .roi_align import pooled_regions, replace_roi_layers
from .rpn import fuse_rpn, single_conv

# Heads that only apply layers to features; boxes are computed from their outputs. Others may compute boxes in between.
NETWORKS = (
    dense_heads.ATSSHead,
    dense_heads.FCOSHead,
    dense_heads.FreeAnchorRetinaHead,
    dense_heads.GFLHead,
    dense_heads.RPNHead,
    dense_heads.RetinaHead,
    dense_heads.RetinaSepBNHead,
    dense_heads.SSDHead,
    dense_heads.YOLOV3Head,
    dense_heads.YOLOXHead,
    SHViTRPNHead,
    bbox_heads.BBoxHead,
    bbox_heads.ConvFCBBoxHead,
    bbox_heads.Shared2FCBBoxHead,
    bbox_heads.Shared4Conv1FCBBoxHead,
    FCNMaskHead,
)


def fuse_detector(detector: Any, channels_last: bool, left: list[nn.Module]) -> None:
    """Replace the parts of a copy of a trained detector, in place, by their fused forms.

    ``left`` gets the parts that stay as they are, because they may compute something else than the fused forms.
    """
    neck: Any = getattr(detector, 'neck', None)
    head: Any = getattr(detector, 'rpn_head', None)
    conv = single_conv(head)
    if is_unmodified(detector.backbone, SHViT):
        detector.backbone = FusedSHViT(detector.backbone, channels_last, left)
    elif isinstance(detector.backbone, SHViT):
        left.append(detector.backbone)
    finest = None
    if supports_neck(neck):
        finer = compose_finer(neck)
        detector.neck = FusedSHViTFPN(neck, channels_last, finer)
        if conv is not None and neck.num_upsamples >= 2:  # with stride 4, composing it pays
            composed = compose_conv(finer[0], copy.deepcopy(conv).double())
            finest = composed, detector.neck.finer_convs[0]
    elif isinstance(neck, SHViTFPN):
        left.append(neck)
    if conv is not None:
        fuse_rpn(head, conv, finest)
        detector.register_load_state_dict_pre_hook(_accept_former_names)
    elif type(head) is SHViTRPNHead:  # which replace_layers leaves alone below
        left += replace_layers(head)
    ours = [part for part in detector.children() if isinstance(part, FusedSHViT | FusedSHViTFPN)]
    left += replace_layers(detector, (*left, *ours, *([head] if isinstance(head, SHViTRPNHead) else [])))
    fuse_mask_branch(detector)
    replace_roi_layers(detector)
    _separate_precisions(detector)
    if 'forward' not in vars(detector):
        detector.forward = partial(call_without_autocast, detector, partial(type(detector).forward, detector))


def _accept_former_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Accept state dicts of deployed detectors from before the RPN's composed layer moved from the neck to the head."""
    moved = {
        'neck.neck.': 'neck.',
        'neck.hidden.': 'rpn_head.rpn_finest.hidden.',
        'neck.border.': 'rpn_head.rpn_finest.border.',
    }
    for name in list(state):
        for old, new in moved.items():
            if name.startswith(prefix + old):
                state[prefix + new + name.removeprefix(prefix + old)] = state.pop(name)


def check_castable(detector: Any) -> None:
    """Raise ``UsageError`` if a detector is of neither of mmdet's one-stage and two-stage kinds.

    Of other kinds it is not known what computes coordinates.
    """
    if not isinstance(detector, SingleStageDetector | TwoStageDetector):
        raise UsageError(
            f'dtype is for one-stage and two-stage detectors, not for a {type(detector).__name__}: '
            'run that under torch.autocast'
        )


def _separate_precisions(detector: Any) -> None:
    """Make the networks of a detector run in the data type that it is moved to, and all else in float32 at least.

    Networks are backbone, neck and the heads that only apply layers. They take what they are given in their own data
    type; boxes, areas, scores and masks are computed from results in float32.
    """
    trunk = [part for part in (detector.backbone, getattr(detector, 'neck', None)) if isinstance(part, nn.Module)]
    heads = [part for part in detector.modules() if type(part) in NETWORKS]
    for part in (*trunk, *heads):
        part.register_forward_pre_hook(cast_inputs)
    for head in heads:
        head.register_forward_hook(widen_outputs)
    others = list(_without(detector, (*trunk, *heads)))
    for part in others:
        part._apply = partial(apply_in_float32, part)  # type: ignore[method-assign, assignment]
    if any(map(_wants_float32, others)):
        trunk[-1].register_forward_hook(widen_outputs)


def _without(module: nn.Module, parts: tuple[nn.Module, ...]) -> Iterator[nn.Module]:
    """Return the largest descendants of a module that neither are among ``parts`` nor hold one."""
    for child in module.children():
        if not any(part in parts for part in child.modules()):
            yield child
        elif child not in parts:
            yield from _without(child, parts)


def _wants_float32(part: nn.Module) -> bool:
    """Return whether a part has layers for features, or pools regions of them in the features' data type."""
    pools = (
        isinstance(module, BaseRoIExtractor) and getattr(module.forward, 'func', None) is not pooled_regions
        for module in part.modules()
    )
    return any(True for _ in part.parameters()) or any(pools)
