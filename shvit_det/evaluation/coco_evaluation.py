"""COCO's scores of results, computed by pycocotools: average precision, average recall, and precision over recall."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIZES = ('small', 'medium', 'large')


def coco_evaluation(
    truth: COCO,
    results: Sequence[dict[str, Any]],
    kind: str,
    categories: Sequence[int],
    images: Sequence[int],
    max_detections: Sequence[int] = (1, 10, 100),
) -> COCOeval:
    """Return pycocotools' evaluation of results, computed and silent.

    It numbers images and classes in the order of their ids, as ``params.imgIds`` and ``params.catIds`` have them then.

    Args:
        truth: The annotations.
        results: In COCO's form: ``image_id``, ``category_id``, ``score``, ``bbox``, and ``segmentation`` for masks.
        kind: ``'bbox'`` or ``'segm'``.
        categories, images: The ids of those that are scored.
        max_detections: How many detections of a class in an image count.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        # without the boxes, so that the areas are those of the masks
        copies = [{key: value for key, value in each.items() if kind == 'bbox' or key != 'bbox'} for each in results]
        found = truth.loadRes(copies) if copies else COCO()
        if not copies:
            found.dataset = dict(images=truth.dataset['images'], categories=truth.dataset['categories'], annotations=[])
            found.createIndex()
        evaluator = COCOeval(truth, found, kind)
        evaluator.params.catIds = list(categories)
        evaluator.params.imgIds = list(images)
        evaluator.params.maxDets = list(max_detections)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def mean_of(values: NDArray[Any]) -> float | None:
    """Return the mean of precisions or recalls as COCO does, without those that are -1; None if all are."""
    counted = values[values > -1]
    return float(counted.mean()) if len(counted) else None


def average_precisions(evaluator: COCOeval, label: int | None = None) -> dict[str, float | None]:
    """Return AP, AP50, AP75 and AP by size of all classes or of one, from 0 to 1; None where there is no object."""
    most = evaluator.params.maxDets
    hundred = most.index(100) if 100 in most else -1  # which COCO takes for the first of its numbers, whatever is last
    at, thresholds = evaluator.eval['precision'], evaluator.params.iouThrs
    at = at if label is None else at[:, :, label : label + 1]
    values = {'AP': mean_of(at[:, :, :, 0, hundred])}
    for name, threshold in (('AP50', 0.5), ('AP75', 0.75)):
        values[name] = mean_of(at[np.isclose(thresholds, threshold), :, :, 0, -1])
    return values | {f'AP {size}': mean_of(at[:, :, :, number, -1]) for number, size in enumerate(SIZES, start=1)}


def average_recalls(evaluator: COCOeval) -> dict[str, float | None]:
    """Return COCO's average recall by size, over IoU 0.5 to 0.95."""
    recall = evaluator.eval['recall']
    return {size: mean_of(recall[:, :, number, -1]) for number, size in enumerate(SIZES, start=1)}


def precision_by_recall(evaluator: COCOeval) -> dict[str, NDArray[Any]]:
    """Return the mean precision over classes at 101 recalls from 0 to 1, for IoU 0.5, 0.75 and the mean of all."""
    precision = evaluator.eval['precision'][:, :, :, 0, -1]
    precision = precision[:, :, (precision > -1).all((0, 1))]
    if not precision.shape[2]:
        return {}
    chosen = {'IoU 0.50': [0.5], 'IoU 0.75': [0.75], 'mean of 0.50 to 0.95': evaluator.params.iouThrs}
    return {
        name: precision[np.isclose(evaluator.params.iouThrs[:, None], wanted).any(1)].mean((0, 2))
        for name, wanted in chosen.items()
    }
