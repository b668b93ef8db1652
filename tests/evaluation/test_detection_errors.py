"""Matches, curves and kinds of error on objects whose answer is known, and AP against pycocotools'."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from shvit_det.evaluation.coco_evaluation import (
    average_precisions,
    average_recalls,
    coco_evaluation,
    precision_by_recall,
)
from shvit_det.evaluation.detection_errors import (
    KINDS,
    calibration,
    confusions,
    costs,
    errors,
    matches,
    recall_by_size,
    score_curve,
)

SIDE = 100
CAT, DOG = 7, 3  # ids of categories, in whose order the classes are: dog, cat


def coco(objects, num_images=1):
    """A ground truth of ``(image, category, box)`` or ``(image, category, box, 'crowd')``, with masks as large."""
    annotations = [
        dict(id=number, image_id=image, category_id=category, bbox=list(box), area=box[2] * box[3],
             iscrowd=int(bool(crowd)), segmentation=rectangle(box))
        for number, (image, category, box, *crowd) in enumerate(objects, start=1)
    ]  # fmt: skip
    truth = COCO()
    truth.dataset = dict(
        info={},
        images=[dict(id=number, width=SIDE, height=SIDE) for number in range(num_images)],
        categories=[dict(id=CAT, name='cat'), dict(id=DOG, name='dog')],
        annotations=annotations,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def rectangle(box):
    mask = np.zeros((SIDE, SIDE), np.uint8, order='F')
    left, top, width, height = (round(side) for side in box)
    mask[top : top + height, left : left + width] = 1
    return mask_utils.encode(mask)


def results(detections):
    return [
        dict(image_id=image, category_id=category, bbox=list(box), score=score, segmentation=rectangle(box))
        for image, category, box, score in detections
    ]


def evaluated(truth, detections, kind='bbox'):
    return coco_evaluation(truth, results(detections), kind, [CAT, DOG], sorted(truth.imgs))


OBJECTS = [
    (0, CAT, (0, 0, 10, 10)),
    (0, CAT, (20, 0, 10, 10)),
    (0, CAT, (40, 0, 10, 10)),
    (0, DOG, (60, 0, 10, 10)),
    (0, DOG, (80, 0, 10, 10)),
    (0, CAT, (0, 50, 10, 10)),
    (0, CAT, (50, 50, 40, 40), 'crowd'),
]
DETECTIONS = [
    (0, CAT, (30, 80, 6, 6), 0.4),
    (0, CAT, (0, 0, 10, 10), 0.8),
    (0, CAT, (0, 0, 10, 10), 0.9),
    (0, CAT, (25, 0, 10, 10), 0.7),
    (0, DOG, (40, 0, 10, 10), 0.6),
    (0, CAT, (65, 0, 10, 10), 0.5),
    (0, CAT, (60, 60, 6, 6), 0.95),  # on the crowd, so of no account
]


@pytest.fixture(params=['bbox', 'segm'])
def evaluator(request):
    return evaluated(coco(OBJECTS), DETECTIONS, request.param)


def test_each_detection_and_object_has_its_kind(evaluator):
    found = matches(evaluator)
    assert found.score.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert found.source.tolist() == [2, 1, 3, 4, 5, 0]
    all_errors = errors(found)
    assert all_errors.kind.tolist() == ['right', 'duplicate', 'localisation', 'class', 'both', 'background']
    kinds = dict(zip(found.truth_id.tolist(), all_errors.truth_kind.tolist(), strict=True))
    assert kinds == {1: 'right', 2: 'localisation', 3: 'class', 4: 'missed', 5: 'missed', 6: 'missed'}
    assert [all_errors.count(kind) for kind in KINDS] == [1, 1, 1, 1, 1, 3]


def test_from_a_score_on_what_lies_below_finds_nothing(evaluator):
    some = errors(matches(evaluator), 0.65)
    assert some.kind.tolist() == ['right', 'duplicate', 'localisation', '', '', '']
    assert [some.count(kind) for kind in KINDS] == [0, 1, 0, 1, 0, 4]


def test_a_kind_costs_what_correcting_it_would_gain(evaluator):
    base, gains = costs(matches(evaluator), 2)
    # cats: one of four is found at precision 1, which are 26 of 101 recalls; no dog is found
    assert base == pytest.approx(26 / 101 / 2) == pytest.approx(average_precisions(evaluator)['AP50'])
    assert gains == pytest.approx(
        {
            'class': 25 * 2 / 4 / 101 / 2,
            'localisation': 25 * 2 / 3 / 101 / 2,
            'both': 0,
            'duplicate': 0,
            'background': 0,
            'missed': 34 / 101 - 26 / 101 / 2,  # one of three cats, and no dog to be found
        }
    )


def test_the_best_of_several_errors_about_an_object_is_corrected_and_no_object_is_found_twice():
    truth = coco([(0, CAT, (0, 0, 10, 10)), (0, CAT, (50, 0, 10, 10))])
    near = [(0, CAT, (0, 0, 10, 3), score) for score in (0.9, 0.8)]
    base, gains = costs(matches(evaluated(truth, near)), 2)
    assert (base, gains['localisation']) == pytest.approx((0, 51 / 101))  # one right, none wrong, one object left
    found_too = [(0, CAT, (0, 0, 10, 10), 0.5)]
    base, gains = costs(matches(evaluated(truth, near + found_too)), 2)
    assert base == pytest.approx(51 / 3 / 101) and gains['localisation'] == pytest.approx(51 / 101 - base)


def test_a_perfect_detector_has_no_errors():
    found = matches(evaluated(coco(OBJECTS[:6]), [(*each, 0.9) for each in OBJECTS[:6]]))
    base, gains = costs(found, 2)
    assert base == 1 and set(gains.values()) == {0} and not any(errors(found).count(kind) for kind in KINDS)


@pytest.mark.parametrize(('objects', 'detections'), [(OBJECTS, []), ([], DETECTIONS), ([], [])])
@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_nothing_found_and_nothing_to_find(objects, detections, kind):
    evaluator = evaluated(coco(objects), detections, kind)
    found = matches(evaluator)
    assert len(found.score) == len(detections) - (1 if detections and objects else 0)
    expected = {'background': len(found.score), 'missed': len(found.truth_id)}
    assert {kind: errors(found).count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 0) | expected
    assert costs(found, 2)[0] == (0 if objects else 1)
    assert score_curve(found).best is None and precision_by_recall(evaluator).keys() == (
        {'IoU 0.50', 'IoU 0.75', 'mean of 0.50 to 0.95'} if objects else set()
    )
    assert (average_precisions(evaluator)['AP'] is None) is (not objects)
    assert confusions(found, 2, 0.0)[:2, 2].sum() == len(found.truth_id)
    assert (calibration(found)[1] is None) is (not detections)


def test_curves_confusions_calibration_and_sizes(evaluator):
    found = matches(evaluator)
    curve = score_curve(found)
    assert curve.precision == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6])
    assert curve.recall == pytest.approx([1 / 6] * 6)
    assert curve.best == 0 and curve.f1[0] == pytest.approx(2 / 7)
    assert score_curve(found, 0).score.tolist() == [0.6] and score_curve(found, 0).best is None
    assert confusions(found, 2, 0.0).tolist() == [[0, 0, 2], [1, 1, 2], [0, 4, 0]]
    assert confusions(found, 2, 0.65).tolist() == [[0, 0, 2], [0, 1, 3], [0, 2, 0]]
    rows, difference = calibration(found)
    assert rows[-1] == (0.9, 1, 1) and rows[0] == (0.4, 0, 1) and sum(count for *_, count in rows) == 6
    assert difference == pytest.approx((0.1 + 0.8 + 0.7 + 0.6 + 0.5 + 0.4) / 6)
    assert recall_by_size(found, 0.5) == dict(small=(6, 1), medium=(0, 0), large=(0, 0))
    assert recall_by_size(found, 0.95)['small'] == (6, 0)
    assert average_recalls(evaluator)['large'] is None


def test_an_object_with_the_id_0_is_never_found_as_pycocotools_has_it():
    """It writes 0 for a detection that found nothing."""
    truth = coco([(0, CAT, (0, 0, 10, 10)), (0, CAT, (50, 0, 10, 10))])
    for annotation in truth.dataset['annotations']:
        annotation['id'] -= 1
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    places = [(30, 80, 6, 6), (50, 0, 10, 10), (0, 0, 10, 10)]
    evaluator = evaluated(truth, [(0, CAT, place, score) for place, score in zip(places, (0.9, 0.8, 0.7), strict=True)])
    found = matches(evaluator)
    assert found.truth.tolist() == [-1, 1, -1]
    assert costs(found, 2)[0] == pytest.approx(average_precisions(evaluator)['AP50'])


def test_equal_scores_are_taken_or_left_together():
    detections = [(0, CAT, (0, 0, 10, 10), 0.5), (0, CAT, (30, 80, 6, 6), 0.5)]
    curve = score_curve(matches(evaluated(coco(OBJECTS), detections)))
    assert (curve.score.tolist(), curve.precision.tolist()) == ([0.5], [0.5])


def random_scene(seed):
    """Objects and detections near them, of both classes, in several images, with equal scores and crowds."""
    random = np.random.default_rng(seed)
    objects, detections = [], []
    for image in range(6):
        for _ in range(random.integers(0, 7)):
            box = (*random.integers(0, 60, 2).tolist(), *random.integers(6, 40, 2).tolist())
            category = int(random.choice([CAT, DOG]))
            objects.append((image, category, box, *(['crowd'] if random.random() < 0.15 else [])))
            for _ in range(random.integers(0, 4)):
                moved = [max(0, side + change) for side, change in zip(box, random.integers(-4, 5, 4), strict=True)]
                wrong = random.random() < 0.2
                score = round(float(random.random()), 1)
                detections.append(
                    (image, CAT if wrong else category, (*moved[:2], *map(max, moved[2:], (2, 2))), score)
                )
    return coco(objects, num_images=6), detections


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
@pytest.mark.parametrize('seed', range(12))
def test_average_precision_is_that_of_pycocotools(seed, kind):
    evaluator = evaluated(*random_scene(seed), kind)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.summarize()
    values = average_precisions(evaluator)
    summary = evaluator.stats[:6].tolist()
    assert [-1 if value is None else value for value in values.values()] == pytest.approx(summary)
    found = matches(evaluator)
    base, gains = costs(found, 2)
    assert base == pytest.approx(values['AP50']) and min(gains.values()) > -1e-9
    all_errors = errors(found)
    assert set(all_errors.kind.tolist()) <= {'right', *KINDS}
    recalls = [0 if value is None else value for value in average_recalls(evaluator).values()]
    assert recalls == pytest.approx(evaluator.stats[9:].clip(0).tolist())
    assert precision_by_recall(evaluator)['IoU 0.50'].mean() == pytest.approx(values['AP50'])
    table = confusions(found, 2, 0.3)
    assert table[:2].sum() == len(found.truth_id) and table[:, :2].sum() == (found.score >= 0.3).sum()
