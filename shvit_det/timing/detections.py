"""A fixed number of detections, since the head's time depends on it and random weights give none or the maximum.

The configs' own score threshold is what is changed: it is set so high that just enough candidates pass it and survive
the suppression, and ``max_per_img`` cuts what comes on top. Nothing of the network or of its arithmetic is changed.
"""

from collections.abc import Callable, Sequence
from typing import Any

from mmengine.structures import InstanceData
from torch import nn

from .single_parts import Calls

DEFAULT_DETECTIONS = 100
"""COCO's limit per image, and what Mask R-CNN's mask head costs at most."""

DESCENT = 0.7
LOWEST_THRESHOLD = 1e-9
BISECTIONS = 12


def detection_config(detector: nn.Module) -> Any | None:
    """Return the part of ``test_cfg`` that has the score threshold of the detections, or None if there is none."""
    for name in ('roi_head', 'bbox_head', 'mask_head'):
        config = getattr(getattr(detector, name, None), 'test_cfg', None)
        if config is not None and 'score_thr' in config:
            return config
    return None


def fix_detections(detector: nn.Module, calls: Calls, number: int) -> int | None:
    """Set a detector's threshold so that every image of a batch has ``number`` detections.

    Args:
        detector: The detector; its ``test_cfg`` is changed.
        calls: The calls of its ``predict_by_feat`` in a prediction of the batch, as captured.
        number: Detections per image.

    Returns:
        The fewest detections that an image of the batch has now, ``number`` unless the boxes do not suffice; None if
        the detector has no threshold and always gives as many as its queries.
    """
    config = detection_config(detector)
    if config is None:
        return None
    for limit in ('max_per_img', 'max_per_image'):
        if limit in config:
            config[limit] = number

    def count(threshold: float) -> int:
        config.score_thr = threshold
        return fewest(calls.prepare()())

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


def fewest(results: Sequence[Any]) -> int:
    """Return the number of detections of the image with the fewest, in the first result that has any instances."""
    for result in results:
        numbers = counts_of(result)
        if numbers:
            return min(numbers)
    return 0


def counts_of(result: Any) -> list[int]:
    """Return how many instances each image of a result has; empty for what is no list of instances."""
    if isinstance(result, list | tuple) and result and all(isinstance(item, InstanceData) for item in result):
        return [len(item) for item in result]
    return []


def counting(method: Callable[..., Any], counts: list[int]) -> Callable[..., Any]:
    """Return a method that leaves in ``counts`` how many instances per image its last result had."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        counts[:] = counts_of(result)
        return result

    return counted
