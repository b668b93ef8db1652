"""A detector whose backbone, neck and head disagree fails when it is built, not an hour into training.

mmdet builds backbone, neck and heads without comparing them. Wrong channels end in a shape error at the first image;
wrong strides in no error at all: anchors and RoIs are laid on the wrong places and the detector just learns badly.
The comparison runs at the end of the constructors of mmdet's one- and two-stage detectors, and only where the backbone
publishes ``out_channels`` and ``out_strides``, as ours does.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from .backbone import SHViT
from .errors import UsageError
from .neck import SHViTFPN


def neck_out_strides(neck: Any, in_strides: Sequence[int]) -> tuple[int, ...] | None:
    """Return the strides of a neck's outputs, or None where its class does not tell."""
    if isinstance(neck, SHViTFPN):
        return neck.out_strides(in_strides)
    if hasattr(neck, 'num_outs') and hasattr(neck, 'start_level'):  # mmdet's FPN and its relatives
        strides = list(in_strides[neck.start_level :])
        while len(strides) < neck.num_outs:
            strides.append(strides[-1] * 2)
        return tuple(strides)
    if type(neck).__name__.endswith('PAFPN'):  # CSPNeXtPAFPN and YOLOXPAFPN keep the levels they are given
        return tuple(in_strides)
    return None


def prior_strides(head: nn.Module) -> tuple[int, ...] | None:
    """Return the strides at which a dense head lays its anchors or points, or None where it has none."""
    generator = getattr(head, 'prior_generator', None)
    strides = getattr(generator, 'strides', None)
    return tuple(max(stride) for stride in strides) if strides else None


def check_detector(detector: Any) -> None:
    """Compare the parts of a built mmdet detector whose backbone is a SHViT.

    Raises:
        UsageError: If channels or strides of two parts differ; the sentence names both.
    """
    backbone = detector.backbone
    if not isinstance(backbone, SHViT):
        return
    channels: tuple[int, ...] = backbone.out_channels
    strides: tuple[int, ...] | None = backbone.out_strides

    neck = getattr(detector, 'neck', None)
    if neck is not None and hasattr(neck, 'in_channels'):
        _compare('neck.in_channels', _as_tuple(neck.in_channels), "the backbone's out_channels", channels)
        strides = neck_out_strides(neck, backbone.out_strides)
        if isinstance(getattr(neck, 'out_channels', None), int):
            channels = (neck.out_channels,)

    levels = 'the levels made by ' + ('the neck' if neck is not None else 'the backbone')
    for name in ('rpn_head', 'bbox_head'):
        head = getattr(detector, name, None)
        if head is None:
            continue
        if isinstance(getattr(head, 'in_channels', None), int):
            _compare(f'{name}.in_channels', (head.in_channels,), f'the channels of {levels}', tuple(set(channels)))
        if strides is not None:
            head_strides = prior_strides(head)
            if head_strides is not None:
                _compare(f'the strides of {name}', head_strides, f'the strides of {levels}', strides)
    if strides is not None:
        for extractor in _roi_extractors(detector):
            roi_strides = tuple(extractor.featmap_strides)
            _compare('featmap_strides of the RoI extractor', roi_strides, f'the strides of {levels}',
                     strides[: len(roi_strides)])  # fmt: skip


def install() -> None:
    """Make mmdet's detectors run :func:`check_detector` at the end of their construction; no-op without mmdet."""
    if importlib.util.find_spec('mmdet') is None:
        return
    from mmdet.models.detectors import SingleStageDetector, TwoStageDetector

    for cls in (SingleStageDetector, TwoStageDetector):
        if not hasattr(cls.__init__, 'checked_by_shvit_det'):
            cls.__init__ = _checked(cls.__init__)  # type: ignore[method-assign]


def _checked(init: Callable) -> Callable:
    @functools.wraps(init)
    def checked_init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        check_detector(self)

    checked_init.checked_by_shvit_det = True  # type: ignore[attr-defined]
    return checked_init


def _as_tuple(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _roi_extractors(detector: Any) -> list[Any]:
    roi_head = getattr(detector, 'roi_head', None)
    if roi_head is None:
        return []
    return [module for module in roi_head.modules() if hasattr(module, 'featmap_strides')]


def _compare(name: str, value: tuple[int, ...], other_name: str, other: tuple[int, ...]) -> None:
    if value != other:
        raise UsageError(f'{name} is {list(value)}, but {other_name} is {list(other)}: make them equal in the config')
