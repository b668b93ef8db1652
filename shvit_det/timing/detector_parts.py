"""The parts of mmdet's detectors, such as backbone, neck and mask head: which methods they are, and how to wrap those.

While a detector is instrumented, the methods of its parts are wrapped. Each moment of a run then belongs to the
innermost wrapped method that is running, and to no part (*unattributed*) outside of all of them. So the parts of a run
add up to the run, and a small unattributed time shows that they are the right methods.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from ..configuration.batches import copy_containers
from ..models.pyramid import FeaturePyramid


@dataclass(frozen=True)
class Span:
    """A method that belongs to a part."""

    part: str
    owner: str  # dotted path from the detector to the object with the method; '' is the detector
    method: str = 'forward'
    # whether calls of this method are recorded and made again, to time the part by itself. Methods that are not
    # replayed only attribute the time between such calls to their part.
    replayed: bool = False


_replayed = partial(Span, replayed=True)

COMMON = (
    _replayed('preprocess', 'data_preprocessor'),
    _replayed('backbone', 'backbone'),
    _replayed('neck', 'neck'),
)
TWO_STAGE = (
    _replayed('RPN conv', 'rpn_head'),
    _replayed('proposals', 'rpn_head', 'predict_by_feat'),
    Span('proposals', 'rpn_head', 'predict'),
    _replayed('RoI features', 'roi_head.bbox_roi_extractor'),
    _replayed('RoI features', 'roi_head.mask_roi_extractor'),
    _replayed('RoI features', 'roi_head.semantic_roi_extractor'),
    _replayed('shared head', 'roi_head.shared_head'),
    _replayed('semantic head', 'roi_head.semantic_head'),
    _replayed('box head', 'roi_head.bbox_head'),
    _replayed('mask head', 'roi_head.mask_head'),
    _replayed('mask head', 'roi_head.mask_iou_head'),
    _replayed('mask head', 'roi_head.point_head'),
    _replayed('post-processing', 'roi_head.bbox_head', 'predict_by_feat'),
    _replayed('post-processing', 'roi_head.mask_head', 'predict_by_feat'),
    Span('post-processing', 'roi_head', 'predict'),
)
ONE_STAGE = (
    Span('queries', '', 'forward_transformer'),  # of transformer detectors
    _replayed('encoder', 'encoder'),
    _replayed('decoder', 'decoder'),
    _replayed('head', 'bbox_head'),
    _replayed('head', 'mask_head'),
    _replayed('head', 'panoptic_head', 'predict'),
    _replayed('post-processing', 'bbox_head', 'predict_by_feat'),
    _replayed('post-processing', 'mask_head', 'predict_by_feat'),
    _replayed('post-processing', 'panoptic_fusion_head', 'predict'),
    Span('post-processing', 'bbox_head', 'predict'),
    Span('post-processing', 'mask_head', 'predict'),
)
PREDICTION = (Span('post-processing', '', 'add_pred_to_datasample'),)
LOSSES = (
    Span('losses', 'rpn_head', 'loss_by_feat'),
    Span('losses', 'roi_head', 'loss'),
    Span('losses', 'roi_head.bbox_head', 'loss_and_target'),
    Span('losses', 'roi_head.mask_head', 'loss_and_target'),
    Span('losses', 'bbox_head', 'loss'),
    Span('losses', 'mask_head', 'loss'),
    Span('losses', 'panoptic_head', 'loss'),
    Span('losses', '', 'parse_losses'),
)


def spans_of(detector: nn.Module, training: bool) -> tuple[Span, ...]:
    """Return the methods that divide a run of a detector among its parts; the detector need not have all of them."""
    heads = TWO_STAGE if getattr(detector, 'rpn_head', None) is not None else ONE_STAGE
    return COMMON + heads + (LOSSES if training else PREDICTION)


def owners_of(root: Any, span: Span) -> list[Any]:
    """Return the objects that have the method of a span: none, one, or the stages of a cascade."""
    try:
        owner = reduce(getattr, span.owner.split('.'), root) if span.owner else root
    except AttributeError:
        return []
    owners = list(owner) if isinstance(owner, nn.ModuleList) else [owner]
    return [owner for owner in owners if callable(getattr(owner, span.method, None))]


def modules_by_part(detector: nn.Module, spans: Sequence[Span]) -> dict[str, list[nn.Module]]:
    """Return the modules that each part runs: those whose ``forward`` belongs to it."""
    parts: dict[str, list[nn.Module]] = {}
    for span in spans:
        if span.method == 'forward':
            parts.setdefault(span.part, []).extend(owners_of(detector, span))
    return {part: modules for part, modules in parts.items() if modules}


Wrapper = Callable[[Span, Callable[..., Any]], Callable[..., Any]]
Call = tuple[Callable[..., Any], tuple, dict[str, Any]]  # a method and its arguments


@contextmanager
def instrumented(root: Any, spans: Sequence[Span], wrapper: Wrapper) -> Iterator[None]:
    """Replace each method of ``spans`` by ``wrapper(span, method)`` inside a ``with`` block.

    A method of two spans is wrapped once, for the first. The end of the block restores everything, also after an error.
    """
    seen = set()
    with ExitStack() as stack:
        for span in spans:
            for owner in owners_of(root, span):
                if (id(owner), span.method) not in seen:
                    seen.add((id(owner), span.method))
                    original = getattr(owner, span.method)
                    stack.callback(_restore, owner, span.method, vars(owner).get(span.method))
                    setattr(owner, span.method, wrapper(span, original))
        yield


def _restore(owner: Any, method: str, previous: Any) -> None:
    if previous is None:
        delattr(owner, method)
    else:
        setattr(owner, method, previous)


def tensors_kept(value: Any) -> Any:
    """Copy the tensors on a GPU in containers: CUDA graphs overwrite their outputs in the next run."""

    def keep(leaf: Any) -> Any:
        if isinstance(leaf, FeaturePyramid):
            origin = leaf.origin and leaf.origin._replace(source=keep(leaf.origin.source))
            return FeaturePyramid(map(keep, leaf.peek()), origin)
        return leaf.clone() if isinstance(leaf, torch.Tensor) and leaf.is_cuda else leaf

    return tree_map(keep, value, is_leaf=lambda node: isinstance(node, FeaturePyramid))


def record_calls(detector: nn.Module, spans: Sequence[Span], run: Callable[[], Any]) -> dict[str, list[Call]]:
    """Run a detector once and return the calls of each part that can run by itself, whose spans are ``replayed``."""
    parts: dict[str, list[Call]] = {}
    active: list[str] = []

    def recording(span: Span, method: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if not active:  # a call inside another part's call is repeated with that one
                call = tensors_kept(copy_containers((method, args, kwargs)))
                parts.setdefault(span.part, []).append(call)
            active.append(span.part)
            try:
                return method(*args, **kwargs)
            finally:
                active.pop()

        return recorded

    with instrumented(detector, [span for span in spans if span.replayed], recording):
        run()
    return parts


def replay(calls: Sequence[Call]) -> Callable[[], list[Any]]:
    """Return a function that makes the calls, once, on copies of the arguments, which are made here."""
    copies = copy_containers(calls)
    return lambda: [method(*args, **kwargs) for method, args, kwargs in copies]
