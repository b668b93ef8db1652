"""The report of a test: a page that says how good a detector is, what its errors are, and shows the worst pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.evaluation import CocoMetric, LVISMetric, MultiDatasetsEvaluator
from mmengine.evaluator import Evaluator
from pycocotools.cocoeval import COCOeval

from . import html_page as html
from .coco_evaluation import average_precisions, average_recalls, coco_evaluation, precision_by_recall
from .detection_errors import KINDS, RIGHT, calibration, confusions, costs, recall_by_size, score_curve
from .error_pictures import FILTERING, Analysis, color_of, dot, gallery

NOUNS = {'bbox': 'box', 'segm': 'mask'}
MOST_CLASSES = 20  # in the confusion matrix
MOST_CONFUSIONS = 15


@dataclass
class ScoredSet:
    """A COCO metric of a test, the data set that it scores, and the results that it is given."""

    name: str
    metric: CocoMetric
    dataset: Any
    results: list[dict[str, Any]] = field(default_factory=list)

    def compute_metrics(self, results: list[tuple[Any, dict[str, Any]]]) -> dict[str, float]:
        self.results = [result for _, result in results]
        scores: dict[str, float] = type(self.metric).compute_metrics(self.metric, results)
        return scores


def record_results(evaluator: Evaluator, dataset: Any) -> list[ScoredSet]:
    """Make the COCO metrics of an evaluator leave their results for a report; return where."""
    by_set = isinstance(evaluator, MultiDatasetsEvaluator)
    scored = []
    for index, metric in enumerate(evaluator.metrics):
        if isinstance(metric, LVISMetric) or not isinstance(metric, CocoMetric) or not set(metric.metrics) & set(NOUNS):
            continue
        name = evaluator.dataset_prefixes[index] if by_set else metric.prefix or ''
        each = ScoredSet(name, metric, dataset.datasets[index] if by_set else dataset)
        metric.compute_metrics = each.compute_metrics
        scored.append(each)
    return scored


def write_report(scored: Sequence[ScoredSet], folder: Path, config: str, checkpoint: str) -> Path:
    """Write the report of a test into a folder and return the path of the page.

    Raises:
        RunError: If it cannot be written.
    """
    several = len(scored) > 1
    parts = [
        html.paragraph(f'Config {config}, checkpoint {checkpoint}.', soft=True),
        html.links({f'set{number}': each.name for number, each in enumerate(scored)}, 'Data sets') if several else '',
        *(_section(each, number, several) for number, each in enumerate(scored)),
    ]
    return html.write_page(folder, f'Test of {Path(checkpoint).name}', parts, FILTERING)


def coco_results(results: Sequence[dict[str, Any]], categories: Sequence[int], kind: str) -> list[dict[str, Any]]:
    """Return the results that mmdet's metric keeps in COCO's form, for boxes or for masks."""
    found = []
    for result in results:
        scores = result.get('mask_scores', result['scores']) if kind == 'segm' else result['scores']
        for index, (label, box, score) in enumerate(zip(result['labels'], result['bboxes'], scores, strict=True)):
            left, top, right, bottom = map(float, box)
            one = dict(
                image_id=result['img_id'],
                category_id=categories[label],
                score=float(score),
                bbox=[left, top, right - left, bottom - top],
            )
            found.append(one | (dict(segmentation=result['masks'][index]) if 'masks' in result else {}))
    return found


def _section(scored: ScoredSet, number: int, has_title: bool) -> str:
    metric = scored.metric
    coco, most = metric._coco_api, sorted(metric.proposal_nums)
    found = {kind: coco_results(scored.results, metric.cat_ids, kind) for kind in NOUNS if kind in metric.metrics}
    evaluations = {
        kind: coco_evaluation(coco, results, kind, metric.cat_ids, metric.img_ids, most)
        for kind, results in found.items()
    }
    kind, first = next(iter(evaluations.items()))
    analysis = Analysis.of(first, [coco.cats[category]['name'] for category in first.params.catIds])
    parts = {
        'scores': ('Scores', _scores(evaluations, analysis)),
        'errors': ('Kinds of error', _errors(analysis)),
        'curves': ('Precision, recall and scores', _curves(analysis)),
        'classes': ('Classes', _classes(evaluations, analysis)),
        'confusions': ('Confusions', _confusions(analysis)),
        'sizes': ('Sizes', _sizes(analysis)),
        'calibration': ('Calibration', _calibration(analysis)),
        'pictures': ('Worst pictures', gallery(scored.dataset, analysis, found[kind])),
    }
    head, label, level = '', 'Parts of the page', 'h2'
    if has_title:
        head, label, level = f'<h2 id="set{number}">{escape(scored.name)}</h2>', f'Parts of {scored.name}', 'h3'
    links = html.links({f'{key}{number}': title for key, (title, _) in parts.items()}, label)
    body = ''.join(
        f'<section><{level} id="{key}{number}">{title}</{level}>{text}</section>\n'
        for key, (title, text) in parts.items()
    )
    return f'{head}{links}\n{body}'


def _scores(evaluations: dict[str, COCOeval], analysis: Analysis) -> str:
    precisions = {kind: average_precisions(evaluator) for kind, evaluator in evaluations.items()}
    rows = [[NOUNS[kind], *map(html.number, values.values())] for kind, values in precisions.items()]
    columns = next(iter(precisions.values()))
    params, curve = analysis.evaluator.params, analysis.curve
    counts = (
        f'{len(params.imgIds)} images with {len(analysis.found.truth_id)} objects of {len(analysis.names)} classes. '
        f'All that follows is about {"boxes" if params.iouType == "bbox" else "masks"}.'
    )
    if (best := curve.best) is not None:
        advice = (
            f'The best threshold is a score of {analysis.score:.2f}: then F1 is highest, {curve.f1[best]:.3f}; of the '
            f'detections {curve.precision[best]:.0%} are right (precision), and of the objects '
            f'{curve.recall[best]:.0%} are found (recall), at an IoU of 0.5.'
        )
    else:
        advice = f'No detection has found an object, so no threshold is best; counted is from {analysis.score} on.'
    return html.paragraph(counts) + html.table(['', *columns], rows, 'Average precision') + html.paragraph(advice)


def _errors(analysis: Analysis) -> str:
    base, gains = costs(analysis.found, len(analysis.names))
    rows = [(kind, gains[kind], f'+{max(gains[kind], 0):.3f}') for kind in KINDS]
    intro = (
        f'AP50 is {base:.3f}. A bar shows by how much it would rise if all errors of one kind were corrected, from the '
        f'lowest score on (as in TIDE); the kinds do not add up.'
    )
    items = ''.join(
        f'<li>{dot(kind)}<b>{kind}</b>, {analysis.errors.count(kind)}: {meaning}</li>'
        for kind, meaning in KINDS.items()
    )
    right = int((analysis.errors.kind == RIGHT).sum())
    counted = f'With a score of {analysis.score:.2f} or more, {right} detections are right, and there are these errors:'
    return (
        html.paragraph(intro)
        + html.bars(rows, [color_of(kind) for kind in KINDS])
        + html.paragraph(counted)
        + f'<ul class="meanings">{items}</ul>'
    )


def _curves(analysis: Analysis) -> str:
    recalls = np.linspace(0, 1, 101)
    precision = {name: (recalls, values) for name, values in precision_by_recall(analysis.evaluator).items()}
    curve = analysis.curve
    shares = {'precision': curve.precision, 'recall': curve.recall, 'F1': curve.f1}
    by_score = {name: (curve.score, values) for name, values in shares.items()}
    mark = None if curve.best is None else analysis.score
    charts = [
        html.chart(precision, 'Precision by recall, mean of the classes', 'recall', 'precision'),
        html.chart(by_score, 'All classes by the lowest score that is taken', 'score', 'share', mark=mark),
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _classes(evaluations: dict[str, COCOeval], analysis: Analysis) -> str:
    head = ['class', 'objects', *(f'{NOUNS[kind]} AP' for kind in evaluations), 'AP50', 'precision', 'recall']
    head += ['best score', 'F1 there']
    found, rows = analysis.found, []
    for label, name in enumerate(analysis.names):
        objects = found.truth_label == label
        detections = (found.label == label) & (found.score >= analysis.score)
        right = (analysis.errors.kind[detections] == RIGHT).sum()
        curve = score_curve(found, label)
        best, f1 = (None, None) if curve.best is None else (curve.score[curve.best], curve.f1[curve.best])
        rows.append(
            [
                name,
                str(objects.sum()),
                *(html.number(average_precisions(each, label)['AP']) for each in evaluations.values()),
                html.number(average_precisions(analysis.evaluator, label)['AP50']),
                html.share(right, detections.sum()),
                html.share(right, objects.sum()),
                html.number(best, 2),
                html.number(f1, 2),
            ]
        )
    text = f'Precision and recall are those at a score of {analysis.score:.2f}. The titles sort the table.'
    return html.paragraph(text) + html.table(head, rows, 'Classes', is_sorted=True)


def _confusions(analysis: Analysis) -> str:
    names, counts = analysis.names, confusions(analysis.found, len(analysis.names), analysis.score)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    shown = np.argsort(-(wrong.sum(0) + wrong.sum(1))[:-1], kind='stable')[:MOST_CLASSES]
    shown = np.append(np.sort(shown), len(names))
    text = (
        f'Rows are the true classes, columns the predicted ones, at a score of {analysis.score:.2f} and an IoU of 0.5 '
        f'whatever the class.'
    )
    if len(names) > MOST_CLASSES:
        text += f' Of {len(names)} classes the {MOST_CLASSES} with the most errors are shown.'
    table = html.matrix(
        [*(names[label] for label in shown[:-1]), 'background'],
        [*(names[label] for label in shown[:-1]), 'missed'],
        counts[np.ix_(shown, shown)].tolist(),
        'Confusion matrix',
    )
    between = wrong[:-1, :-1]
    most_first = np.argsort(-between, axis=None, kind='stable')[:MOST_CONFUSIONS]
    rows = [
        (f'{names[true]} as {names[taken]}', int(between[true, taken]), str(between[true, taken]))
        for true, taken in zip(*np.unravel_index(most_first, between.shape), strict=True)
        if between[true, taken]
    ]
    most = html.paragraph('The most frequent confusions of two classes:') + html.bars(rows) if rows else ''
    return html.paragraph(text) + table + most


def _sizes(analysis: Analysis) -> str:
    precision, recall = average_precisions(analysis.evaluator), average_recalls(analysis.evaluator)
    rows = [
        [size, str(count), html.number(precision[f'AP {size}']), html.number(recall[size]), html.share(found, count)]
        for size, (count, found) in recall_by_size(analysis.found, analysis.score).items()
    ]
    text = (
        'Small is an area below 32 x 32 pixels, large one from 96 x 96 pixels on. AP and AR are means over IoU 0.50 to '
        f'0.95; found is the share of the objects at a score of {analysis.score:.2f} and an IoU of 0.5.'
    )
    return html.paragraph(text) + html.table(['size', 'objects', 'AP', 'AR', 'found'], rows, 'Sizes')


def _calibration(analysis: Analysis) -> str:
    rows, difference = calibration(analysis.found)
    if difference is None:
        return html.paragraph('There is no detection.')
    text = (
        f'The scores of detections differ from the share that is right at an IoU of 0.5 by {difference:.3f} on average '
        f'(expected calibration error). Below the diagonal, scores are too high.'
    )
    scores, right, _ = zip(*rows, strict=True)
    lines = {'detections': (scores, right), 'score = share': ((0, 1), (0, 1))}
    figure = html.chart(lines, 'Share that is right, by score', 'score', 'share that is right', points=True)
    cells = [[f'{score:.2f}', f'{share:.2f}', str(count)] for score, share, count in rows]
    table = html.table(['mean score', 'right', 'detections'], cells, 'Calibration')
    return html.paragraph(text) + f'<div class="charts">{figure}{table}</div>'
