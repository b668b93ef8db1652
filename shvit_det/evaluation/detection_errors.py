"""What a detector found and missed: matches, curves, confusions, and the kinds of error that cost it AP.

The kinds are those of TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV
2020). Which detection belongs to which object is pycocotools' decision, so that the AP here is the AP of COCO.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from pycocotools.cocoeval import COCOeval

from .coco_evaluation import SIZES

FOUND_IOU = 0.5  # from which on a detection is at its object
NEAR_IOU = 0.1  # below which it is on the background
RIGHT = 'right'
KINDS = ('class', 'localisation', 'both', 'duplicate', 'background', 'missed')
MISSED = 'missed'
SIZE_LIMITS = (32**2, 96**2)  # pixels of an object's area
RECALLS = np.linspace(0, 1, 101)  # where COCO reads precision
NUM_BINS = 10  # of scores, for calibration


@dataclass(frozen=True)
class Matches:
    """Detections and the objects that they belong to, over all images; crowds and what lies on them are left out.

    Attributes:
        image, label, score: Of each detection, in the order of images and falling scores: the index of the image, the
            index of the class, the score.
        source: The index of the detection in the results.
        truth: The object that it found, or -1.
        same_iou, same_truth: The largest IoU with an object of its class, and this object.
        other_iou, other_truth: The same with objects of other classes.
        truth_image, truth_label, truth_area, truth_id: Of each object: image, class, area in pixels, and the id of its
            annotation.
        overlaps: For every image the IoU of its detections with its objects.

    Shapes:
        those of detections (D,), those of objects (G,), an entry of ``overlaps`` (d, g).
    """

    image: NDArray[Any]
    label: NDArray[Any]
    score: NDArray[Any]
    source: NDArray[Any]
    truth: NDArray[Any]
    same_iou: NDArray[Any]
    same_truth: NDArray[Any]
    other_iou: NDArray[Any]
    other_truth: NDArray[Any]
    truth_image: NDArray[Any]
    truth_label: NDArray[Any]
    truth_area: NDArray[Any]
    truth_id: NDArray[Any]
    overlaps: tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Errors:
    """The kind of every detection that is taken, and of every object.

    Attributes:
        kind: Of a detection: ``'right'``, one of ``KINDS``, or ``''`` for one below the score.
        target: The object that an error of class or place is about, or that was found or found twice; else -1.
        truth_kind: Of an object: ``'right'``, ``'missed'``, or the kind of the error that is about it.
    """

    kind: NDArray[Any]
    target: NDArray[Any]
    truth_kind: NDArray[Any]

    def count(self, kind: str) -> int:
        """Return how often a kind of error occurs."""
        return int((self.truth_kind == kind).sum() if kind == MISSED else (self.kind == kind).sum())


@dataclass(frozen=True)
class ScoreCurve:
    """Precision, recall and F1 of the detections that have at least a score; scores fall from entry to entry."""

    score: NDArray[Any]
    precision: NDArray[Any]
    recall: NDArray[Any]
    f1: NDArray[Any]

    @property
    def best(self) -> int | None:
        """The entry with the highest F1; None if there is no detection, or no object was found."""
        return int(self.f1.argmax()) if len(self.f1) and self.f1.max() > 0 else None


def matches(evaluator: COCOeval) -> Matches:
    """Return which detection found which object at an IoU of 0.5, and how close the others came.

    Args:
        evaluator: From :func:`.coco_evaluation`.
    """
    params = evaluator.params
    first = int(np.flatnonzero(np.isclose(params.iouThrs, FOUND_IOU))[0])
    by_image: dict[int, list[dict[str, Any]]] = {}
    for entry in evaluator.evalImgs:
        if entry is not None and entry['aRng'] == params.areaRng[0]:
            by_image.setdefault(entry['image_id'], []).append(entry)
    labels = {category: label for label, category in enumerate(params.catIds)}
    columns: dict[str, list[Any]] = {name: [] for name in Matches.__dataclass_fields__}
    num_truths = 0
    for number, image in enumerate(params.imgIds):
        entries = by_image.get(image, [])
        objects = [
            evaluator.cocoGt.anns[id]
            for entry in entries
            for id, ignored in zip(entry['gtIds'], entry['gtIgnore'], strict=True)
            if not ignored
        ]
        places = {each['id']: place + num_truths for place, each in enumerate(objects)}
        found = [
            (
                score,
                labels[entry['category_id']],
                evaluator.cocoDt.anns[id],
                places.get(int(match), -1) if match else -1,
            )
            for entry in entries
            for id, score, match, ignored in zip(
                entry['dtIds'], entry['dtScores'], entry['dtMatches'][first], entry['dtIgnore'][first], strict=True
            )
            if not ignored
        ]
        found.sort(key=lambda each: -each[0])
        overlap = _overlap(evaluator, [each[2] for each in found], objects)
        of_truths = np.array([labels[each['category_id']] for each in objects], int)
        same = np.array([each[1] for each in found], int)[:, None] == of_truths
        for name, where in (('same', same), ('other', ~same)):
            values = np.where(where, overlap, -1)
            best = values.argmax(1) if len(objects) else np.zeros(len(found), int)
            iou = values.max(1, initial=-1).clip(0)
            columns[f'{name}_iou'].append(iou)
            columns[f'{name}_truth'].append(np.where(iou > 0, best + num_truths, -1))
        columns['image'].append(np.full(len(found), number))
        columns['label'].append(np.array([each[1] for each in found], int))
        columns['score'].append(np.array([each[0] for each in found], float))
        columns['source'].append(np.array([each[2]['id'] - 1 for each in found], int))  # loadRes counts from 1
        columns['truth'].append(np.array([each[3] for each in found], int))
        columns['truth_image'].append(np.full(len(objects), number))
        columns['truth_label'].append(of_truths)
        columns['truth_area'].append(np.array([each['area'] for each in objects], float))
        columns['truth_id'].append(np.array([each['id'] for each in objects], int))
        columns['overlaps'].append(overlap)
        num_truths += len(objects)
    overlaps = tuple(columns.pop('overlaps'))
    return Matches(overlaps=overlaps, **{name: np.concatenate(parts) for name, parts in columns.items()})


def _overlap(evaluator: COCOeval, found: list[dict[str, Any]], objects: list[dict[str, Any]]) -> NDArray[Any]:
    """Return the IoU of detections with objects, of boxes or masks as they are scored."""
    if not found or not objects:
        return np.zeros((len(found), len(objects)))
    if evaluator.params.iouType == 'bbox':
        shapes = [[each['bbox'] for each in group] for group in (found, objects)]
    else:
        to_rle = evaluator.cocoGt.annToRLE
        shapes = [[each['segmentation'] for each in found], [to_rle(each) for each in objects]]
    return np.asarray(mask_utils.iou(*shapes, [0] * len(objects)))


def errors(found: Matches, min_score: float = 0.0) -> Errors:
    """Return the kind of every detection with at least a score, and of every object.

    A detection that found no object is, in this order: near an object of its class but not at it (``localisation``), at
    one of another class (``class``), at one that a better detection has found (``duplicate``), near nothing
    (``background``), or near one of another class (``both``). ``missed`` is an object that no detection found, and that
    no error of class or localisation is about.
    """
    taken = found.score >= min_score
    conditions = [
        found.truth >= 0,
        (found.same_iou >= NEAR_IOU) & (found.same_iou < FOUND_IOU),
        found.other_iou >= FOUND_IOU,
        found.same_iou >= FOUND_IOU,
        np.maximum(found.same_iou, found.other_iou) < NEAR_IOU,
    ]
    kind = np.select(conditions, [RIGHT, 'localisation', 'class', 'duplicate', 'background'], 'both')
    at_same = np.isin(kind, ['localisation', 'duplicate'])
    target = np.select(
        [kind == RIGHT, at_same, kind == 'class'], [found.truth, found.same_truth, found.other_truth], -1
    )
    kind, target = np.where(taken, kind, ''), np.where(taken, target, -1)
    truth_kind = np.full(len(found.truth_id), MISSED, '<U12')
    for name in ('localisation', 'class', RIGHT):  # the last counts
        truth_kind[target[kind == name]] = name
    return Errors(kind, target, truth_kind)


def average_precision_50(
    label: NDArray[Any], score: NDArray[Any], is_right: NDArray[Any], num_objects: NDArray[Any]
) -> float:
    """Return the mean AP of the classes that have objects, as COCO computes it; 1 if no class has any.

    Args:
        label: The class of each detection.
        score: Its score.
        is_right: Whether it found an object.
        num_objects: Of each class.

    Shapes:
        the first three (D,), ``num_objects`` (C,)
    """
    values = []
    for number in np.flatnonzero(num_objects > 0):
        own = np.flatnonzero(label == number)
        order = own[np.argsort(-score[own], kind='mergesort')]
        right = is_right[order].cumsum()
        recall, precision = right / num_objects[number], right / np.arange(1, len(order) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        place = np.searchsorted(recall, RECALLS, side='left')
        values.append(np.append(precision, 0)[place].mean())
    return float(np.mean(values)) if values else 1.0


def costs(found: Matches, num_classes: int) -> tuple[float, dict[str, float]]:
    """Return AP50, and by how much it would rise if all errors of one kind were corrected and the others stayed.

    An error of class or localisation becomes right if it is the best of those about an object that was not found, and
    is taken away else. Other wrong detections are taken away. Missed objects are no longer counted.
    """
    all_errors = errors(found)
    num_objects = np.bincount(found.truth_label, minlength=num_classes)
    is_right, is_open = found.truth >= 0, all_errors.truth_kind != RIGHT
    base = average_precision_50(found.label, found.score, is_right, num_objects)
    gains = {}
    for kind in KINDS:
        label, right, kept, counted = found.label.copy(), is_right.copy(), np.ones(len(is_right), bool), num_objects
        wrong = np.flatnonzero(all_errors.kind == kind)
        if kind == MISSED:
            gone = found.truth_label[all_errors.truth_kind == MISSED]
            counted = num_objects - np.bincount(gone, minlength=num_classes)
        else:
            kept[wrong] = False
        if kind in ('class', 'localisation'):
            wrong = wrong[np.argsort(-found.score[wrong], kind='mergesort')]
            wrong = wrong[is_open[all_errors.target[wrong]]]
            best = wrong[np.unique(all_errors.target[wrong], return_index=True)[1]]
            kept[best] = right[best] = True
            label[best] = found.truth_label[all_errors.target[best]]
        gains[kind] = average_precision_50(label[kept], found.score[kept], right[kept], counted) - base
    return base, gains


def score_curve(found: Matches, label: int | None = None) -> ScoreCurve:
    """Return precision, recall and F1 at an IoU of 0.5 by the lowest score that is taken, of all classes or of one."""
    own = np.ones(len(found.label), bool) if label is None else found.label == label
    count = len(found.truth_label) if label is None else int((found.truth_label == label).sum())
    order = np.argsort(-found.score[own], kind='mergesort')
    score, right = found.score[own][order], (found.truth[own][order] >= 0).cumsum()
    last = np.append(score[1:] != score[:-1], True)[: len(score)]  # of equal scores all are taken or none
    precision, recall = right / np.arange(1, len(right) + 1), right / max(count, 1)
    f1 = 2 * right / (np.arange(1, len(right) + 1) + count)
    return ScoreCurve(score[last], precision[last], recall[last], f1[last])


def confusions(found: Matches, num_classes: int, min_score: float) -> NDArray[Any]:
    """Return how often objects of a class were taken for another; pairs go together by IoU from 0.5 up, best first.

    Shapes:
        (C + 1, C + 1): the true class by the predicted; the last row is the background, the last column *missed*.
    """
    table = np.zeros((num_classes + 1, num_classes + 1), int)
    detection, truth = 0, 0
    for overlap in found.overlaps:
        num_found, num_objects = overlap.shape
        labels = found.label[detection : detection + num_found]
        taken = found.score[detection : detection + num_found] >= min_score
        truths = found.truth_label[truth : truth + num_objects]
        free_found, free_truths = taken.copy(), np.ones(num_objects, bool)
        rows, columns = np.nonzero((overlap >= FOUND_IOU) & taken[:, None])
        is_same = labels[rows] == truths[columns]
        for place in np.lexsort((~is_same, -overlap[rows, columns])):
            row, column = rows[place], columns[place]
            if free_found[row] and free_truths[column]:
                free_found[row] = free_truths[column] = False
                table[truths[column], labels[row]] += 1
        np.add.at(table[num_classes], labels[free_found], 1)
        np.add.at(table[:, num_classes], truths[free_truths], 1)
        detection, truth = detection + num_found, truth + num_objects
    return table


def calibration(found: Matches) -> tuple[list[tuple[float, float, int]], float | None]:
    """Return the mean score, the share that is right, and the count for each tenth of scores, and the mean difference.

    The mean of the absolute differences is weighted by the counts (the expected calibration error); None without any
    detection. Tenths without a detection are left out.
    """
    bins = (found.score * NUM_BINS).astype(int).clip(0, NUM_BINS - 1)
    rows = []
    for number in np.unique(bins):
        own = bins == number
        rows.append((float(found.score[own].mean()), float((found.truth[own] >= 0).mean()), int(own.sum())))
    if not rows:
        return [], None
    return rows, sum(abs(score - right) * count for score, right, count in rows) / len(bins)


def recall_by_size(found: Matches, min_score: float) -> dict[str, tuple[int, int]]:
    """Return for each size how many objects there are, and how many a detection with at least a score found."""
    is_found = np.zeros(len(found.truth_id), bool)
    is_found[found.truth[(found.truth >= 0) & (found.score >= min_score)]] = True
    sizes = np.searchsorted(SIZE_LIMITS, found.truth_area, side='right')
    return {
        name: (int((sizes == number).sum()), int(is_found[sizes == number].sum())) for number, name in enumerate(SIZES)
    }
