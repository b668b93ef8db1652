"""A fixed number of detections: the head's time depends on it, and random weights find none or far too many.

Only the score threshold of the config is changed: just enough candidates pass it and survive the suppression, and
``max_per_img`` cuts off more. Nothing in the network or its arithmetic is changed.
"""

from collections.abc import Callable, Sequence
from typing import Any

from mmengine.structures import InstanceData
from torch import nn

from .detector_parts import Call, replay

DEFAULT_DETECTIONS = 100
"""COCO's limit per image, which gives a Mask R-CNN's mask head as much work as it can have."""

DESCENT = 0.7
LOWEST_THRESHOLD = 1e-9
BISECTIONS = 12


def detection_config(detector: nn.Module) -> Any | None:
    """Return the part of ``test_cfg`` with the score threshold of the detections; None if the detector has none."""
    for name in ('roi_head', 'bbox_head', 'mask_head'):
        config = getattr(getattr(detector, name, None), 'test_cfg', None)
        if config is not None and 'score_thr' in config:
            return config
    return None


def fix_detections(detector: nn.Module, calls: Sequence[Call], number: int) -> int:
    """Set the threshold in a detector's ``test_cfg`` so that every image of a batch has ``number`` detections.

    ``calls`` are those of its ``predict_by_feat`` in a prediction of the batch.

    Returns:
        The fewest detections that an image of the batch has now: ``number``, or less if there are too few boxes.
    """
    config = detection_config(detector)
    assert config is not None
    for limit in ('max_per_img', 'max_per_image'):
        if limit in config:
            config[limit] = number

    def count(threshold: float) -> int:
        config.score_thr = threshold
        return _fewest(replay(calls)())

    high, low = 1.0, DESCENT
    while (found := count(low)) < number and low > LOWEST_THRESHOLD:
        high, low = low, low * DESCENT
    for _ in range(BISECTIONS if found >= number else 0):
        middle = (high * low) ** 0.5
        if count(middle) >= number:
            low = middle
        else:
            high = middle
    return count(low)


def _fewest(results: Sequence[Any]) -> int:
    """Return the smallest number of detections of an image, in the first result that has instances."""
    return next((min(numbers) for result in results if (numbers := _counts_of(result))), 0)


def _counts_of(result: Any) -> list[int]:
    """Return the number of instances of each image; nothing if a result is no list of instances."""
    if isinstance(result, list | tuple) and result and all(isinstance(item, InstanceData) for item in result):
        return [len(item) for item in result]
    return []


def counting(method: Callable[..., Any], counts: list[int]) -> Callable[..., Any]:
    """Return a method that writes into ``counts`` how many instances each image had in its last result."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        counts[:] = _counts_of(result)
        return result

    return counted
