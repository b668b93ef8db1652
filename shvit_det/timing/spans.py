"""The parts of mmdet's detectors, and how a run is divided among them.

A part is a name for some methods of a detector. While a detector is instrumented these methods are wrapped; each moment
of a run then belongs to the innermost wrapped method that is running, and what belongs to none is unattributed. So the
parts of a run add up to the run by construction, and the size of the unattributed rest tells whether they are the right
methods.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..models.pyramid import FeaturePyramid
from .clock import Clock
from .record import UNATTRIBUTED

FORWARD = 'forward'
BACKWARD = 'backward'
OPTIMIZER = 'optimizer'


@dataclass(frozen=True)
class Span:
    """A method that belongs to a part.

    Args:
        part: The part's name.
        owner: Dotted path from the detector to the object with the method; ``''`` is the detector.
        method: The method's name.
        alone: Whether the part run by itself is a call of this method; the other spans of a part only claim the time
            between such calls.
    """

    part: str
    owner: str
    method: str = 'forward'
    alone: bool = False


_calls = partial(Span, alone=True)

COMMON = (
    _calls('preprocess', 'data_preprocessor'),
    _calls('backbone', 'backbone'),
    _calls('neck', 'neck'),
)
TWO_STAGE = (
    _calls('RPN conv', 'rpn_head'),
    _calls('proposals', 'rpn_head', 'predict_by_feat'),
    Span('proposals', 'rpn_head', 'predict'),
    _calls('RoI features', 'roi_head.bbox_roi_extractor'),
    _calls('RoI features', 'roi_head.mask_roi_extractor'),
    _calls('RoI features', 'roi_head.semantic_roi_extractor'),
    _calls('shared head', 'roi_head.shared_head'),
    _calls('semantic head', 'roi_head.semantic_head'),
    _calls('box head', 'roi_head.bbox_head'),
    _calls('mask head', 'roi_head.mask_head'),
    _calls('mask head', 'roi_head.mask_iou_head'),
    _calls('mask head', 'roi_head.point_head'),
    _calls('post-processing', 'roi_head.bbox_head', 'predict_by_feat'),
    _calls('post-processing', 'roi_head.mask_head', 'predict_by_feat'),
    Span('post-processing', 'roi_head', 'predict'),
)
ONE_STAGE = (
    Span('queries', '', 'forward_transformer'),  # of transformer detectors
    _calls('encoder', 'encoder'),
    _calls('decoder', 'decoder'),
    _calls('head', 'bbox_head'),
    _calls('head', 'mask_head'),
    _calls('head', 'panoptic_head', 'predict'),
    _calls('post-processing', 'bbox_head', 'predict_by_feat'),
    _calls('post-processing', 'mask_head', 'predict_by_feat'),
    _calls('post-processing', 'panoptic_fusion_head', 'predict'),
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
    """Return the spans that divide a run of a detector; some of them may name what it does not have."""
    heads = TWO_STAGE if getattr(detector, 'rpn_head', None) is not None else ONE_STAGE
    return COMMON + heads + (LOSSES if training else PREDICTION)


def owners_of(root: Any, span: Span) -> list[Any]:
    """Return the objects that a span names: none, one, or the stages of a cascade."""
    try:
        owner = reduce(getattr, span.owner.split('.'), root) if span.owner else root
    except AttributeError:
        return []
    owners = list(owner) if isinstance(owner, nn.ModuleList) else [owner]
    return [owner for owner in owners if callable(getattr(owner, span.method, None))]


def modules_by_part(detector: nn.Module, spans: Sequence[Span]) -> dict[str, list[nn.Module]]:
    """Return the modules that each part runs: the owners of its ``forward``."""
    parts: dict[str, list[nn.Module]] = {}
    for span in spans:
        if span.method == 'forward':
            parts.setdefault(span.part, []).extend(owners_of(detector, span))
    return {part: modules for part, modules in parts.items() if modules}


Wrapper = Callable[[Span, Callable[..., Any]], Callable[..., Any]]


@contextmanager
def instrumented(root: Any, spans: Sequence[Span], wrapper: Wrapper) -> Iterator[None]:
    """Replace the methods that ``spans`` name by what ``wrapper(span, method)`` returns, for the time of the context.

    A method that two spans name is wrapped once, for the first. What was there before is back afterwards, however the
    context is left.
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


class Recorder:
    """Divides the time of a run among its parts.

    In the backward pass, autograd runs the operations in the reverse order of their creation; the backward pass of a
    part therefore begins when the first node that produced an output of the part is about to run, and ends where that
    of another part begins.

    Args:
        clock: Where the time comes from.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._stack: list[tuple[str, str]] = []
        self._began: list[tuple[tuple[str, str], Any]] = []

    @property
    def part(self) -> str:
        """The name of the part that is running."""
        return self._began[-1][0][0] if self._began else UNATTRIBUTED

    def begin(self) -> None:
        """Forget the last run and begin another."""
        self._stack = []
        self._began = []
        self._enter((UNATTRIBUTED, FORWARD))

    def end(self) -> dict[tuple[str, str], float]:
        """Return the seconds of each (part, phase) of the run, in the order in which they first ran."""
        marks = [mark for _, mark in self._began] + [self.clock.mark()]
        times = self.clock.seconds(marks)
        seconds: dict[tuple[str, str], float] = {}
        for (key, _), (start, stop) in zip(self._began, pairwise(times), strict=True):
            seconds[key] = seconds.get(key, 0.0) + stop - start
        return seconds

    def wrap(self, span: Span, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``method`` with its time noted as its part's; made for :func:`instrumented`."""
        return self.claim(method, (span.part, FORWARD))

    def claim(self, method: Callable[..., Any], key: tuple[str, str]) -> Callable[..., Any]:
        """Return ``method`` with its time noted under a part and a phase."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._enter(key)
            try:
                result = method(*args, **kwargs)
                self._watch_backward(key[0], result)
                return result
            finally:
                self._leave()

        return timed

    def _enter(self, key: tuple[str, str]) -> None:
        self._stack.append(key)
        self._note(key)

    def _leave(self) -> None:
        self._stack.pop()
        self._note(self._stack[-1])

    def _note(self, key: tuple[str, str]) -> None:
        self._began.append((key, self.clock.mark()))

    def _watch_backward(self, part: str, result: Any) -> None:
        for value in tree_leaves(result.peek() if isinstance(result, FeaturePyramid) else result):
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                value.grad_fn.register_prehook(lambda _: self._note((part, BACKWARD)))
