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
MISSED = 'missed'
KINDS = {
    'class': 'at an object of another class (IoU 0.5 or more)',
    'localisation': 'near an object of its class, but not at it (IoU 0.1 to 0.5)',
    'both': 'near an object of another class, and not at it',
    'duplicate': 'at an object that a detection with a higher score has found',
    'background': 'near no object (IoU below 0.1)',
    MISSED: 'an object that nothing has found',
}
SIZE_LIMITS = (32**2, 96**2)  # pixels of an object's area
RECALLS = np.linspace(0, 1, 101)  # where COCO reads precision
NUM_BINS = 10  # of scores, for calibration


@dataclass(frozen=True)
class Matches:
    """D detections and the G objects that they belong to, over all images; crowds and what lies on them are left out.

    Detections are in the order of images and falling scores, objects in that of images.
    """

    # Of each detection, (D,)
    image: NDArray[Any]
    label: NDArray[Any]
    score: NDArray[Any]
    source: NDArray[Any]  # its place in the results
    truth: NDArray[Any]  # the object that it found, or -1
    same_iou: NDArray[Any]  # the largest IoU with an object of its class
    same_truth: NDArray[Any]  # this object, or -1
    other_iou: NDArray[Any]  # the same with objects of other classes
    other_truth: NDArray[Any]
    # Of each object, (G,)
    truth_image: NDArray[Any]
    truth_label: NDArray[Any]
    truth_area: NDArray[Any]  # in pixels
    truth_id: NDArray[Any]  # of its annotation
    # For every image the IoU of its detections with its objects, (d, g)
    overlaps: tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Errors:
    """The kind of every detection that is taken, and of every object."""

    kind: NDArray[Any]  # of a detection: ``'right'``, one of ``KINDS``, or ``''`` for one below the score
    target: NDArray[Any]  # the object that it found, or that its error of class or place is about; else -1
    truth_kind: NDArray[Any]  # of an object: ``'right'``, ``'missed'``, or the kind of the error that is about it

    def count(self, kind: str) -> int:
        """Return how often a kind of error occurs."""
        return int(((self.truth_kind if kind == MISSED else self.kind) == kind).sum())


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


def _nearest(overlap: NDArray[Any], first: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the largest overlap in each row and its object, counted from ``first``; 0 and -1 if there is none."""
    padded = np.pad(overlap, ((0, 0), (1, 0)))
    place = padded.argmax(axis=1)
    return padded.max(axis=1), np.where(place > 0, place - 1 + first, -1)


def matches(evaluator: COCOeval) -> Matches:
    """Return which detection found which object at an IoU of 0.5, and how close the others came."""
    params = evaluator.params
    first = int(np.flatnonzero(np.isclose(params.iouThrs, FOUND_IOU))[0])
    by_image: dict[int, list[dict[str, Any]]] = {}
    for entry in evaluator.evalImgs:
        if entry is not None and entry['aRng'] == params.areaRng[0]:
            by_image.setdefault(entry['image_id'], []).append(entry)
    detections: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    truth, nearest, overlaps = list[int](), [], []
    for image in params.imgIds:
        entries = by_image.get(image, [])
        own = [
            evaluator.cocoGt.anns[id]
            for entry in entries
            for id, ignored in zip(entry['gtIds'], entry['gtIgnore'], strict=True)
            if not ignored
        ]
        places = {each['id']: place for place, each in enumerate(own, start=len(objects))}
        matched = [
            (evaluator.cocoDt.anns[id], places.get(int(match), -1) if match else -1)
            for entry in entries
            for id, match, ignored in zip(
                entry['dtIds'], entry['dtMatches'][first], entry['dtIgnore'][first], strict=True
            )
            if not ignored
        ]
        matched.sort(key=lambda each: -each[0]['score'])
        found = [each for each, _ in matched]
        overlap = _overlap(evaluator, found, own)
        is_same = np.equal.outer(*([each['category_id'] for each in group] for group in (found, own)))
        nearest.append([column for where in (is_same, ~is_same) for column in _nearest(overlap * where, len(objects))])
        truth += [place for _, place in matched]
        detections += found
        objects += own
        overlaps.append(overlap)
    same_iou, same_truth, other_iou, other_truth = map(np.concatenate, zip(*nearest, strict=True))
    images, labels = ({id: number for number, id in enumerate(ids)} for ids in (params.imgIds, params.catIds))
    return Matches(
        image=np.array([images[each['image_id']] for each in detections], int),
        label=np.array([labels[each['category_id']] for each in detections], int),
        score=np.array([each['score'] for each in detections], float),
        source=np.array([each['id'] - 1 for each in detections], int),  # loadRes counts from 1
        truth=np.array(truth, int),
        same_iou=same_iou,
        same_truth=same_truth,
        other_iou=other_iou,
        other_truth=other_truth,
        truth_image=np.array([images[each['image_id']] for each in objects], int),
        truth_label=np.array([labels[each['category_id']] for each in objects], int),
        truth_area=np.array([each['area'] for each in objects], float),
        truth_id=np.array([each['id'] for each in objects], int),
        overlaps=tuple(overlaps),
    )


def errors(found: Matches, min_score: float = 0.0) -> Errors:
    """Return the kind of every detection with at least a score, and of every object.

    Of a detection that found no object, the first kind that fits counts: ``localisation``, ``class``, ``duplicate``,
    ``background``, or else ``both``. ``missed`` is an object that no detection found, and that no error of class or
    localisation is about.
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

    Shapes:
        of each detection (D,), ``num_objects`` of each class (C,)
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
    detections, objects = np.cumsum([overlap.shape for overlap in found.overlaps], axis=0)[:-1].T
    per_image = (
        np.split(found.label, detections),
        np.split(found.score, detections),
        np.split(found.truth_label, objects),
    )
    for overlap, labels, scores, truths in zip(found.overlaps, *per_image, strict=True):
        free_found, free_truths = scores >= min_score, np.ones(len(truths), bool)
        rows, columns = np.nonzero((overlap >= FOUND_IOU) & free_found[:, None])
        is_same = labels[rows] == truths[columns]
        for place in np.lexsort((~is_same, -overlap[rows, columns])):
            row, column = rows[place], columns[place]
            if free_found[row] and free_truths[column]:
                free_found[row] = free_truths[column] = False
                table[truths[column], labels[row]] += 1
        np.add.at(table[num_classes], labels[free_found], 1)
        np.add.at(table[:, num_classes], truths[free_truths], 1)
    return table


def calibration(found: Matches) -> tuple[list[tuple[float, float, int]], float | None]:
    """Return the mean score, the share that is right, and the count for each tenth of scores, and the mean difference.

    The mean of the absolute differences is weighted by the counts (the expected calibration error); None without any
    detection. Tenths without a detection are left out.
    """
    if not len(found.score):
        return [], None
    bins = (found.score * NUM_BINS).astype(int).clip(0, NUM_BINS - 1)
    own = [bins == number for number in np.unique(bins)]
    rows = [(float(found.score[each].mean()), float((found.truth[each] >= 0).mean()), int(each.sum())) for each in own]
    return rows, sum(abs(score - right) * count for score, right, count in rows) / len(bins)


def recall_by_size(found: Matches, min_score: float) -> dict[str, tuple[int, int]]:
    """Return for each size how many objects there are, and how many a detection with at least a score found."""
    is_found = np.zeros(len(found.truth_id), bool)
    is_found[found.truth[(found.truth >= 0) & (found.score >= min_score)]] = True
    sizes = np.searchsorted(SIZE_LIMITS, found.truth_area, side='right')
    return {
        name: (int((sizes == number).sum()), int(is_found[sizes == number].sum())) for number, name in enumerate(SIZES)
    }
