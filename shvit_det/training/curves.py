"""The scores that a run logged: read back from its work dir, and drawn as curves."""

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

ACCURACY = 'accuracy/top'  # as mmpretrain names its metrics; mmdet's begin with coco/
CURVES = {'coco/bbox_mAP': 'bbox', 'coco/segm_mAP': 'segm', f'{ACCURACY}1': 'top-1', f'{ACCURACY}5': 'top-5'}


def read_runs(work_dir: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the records that each run in a work dir logged, the oldest run first; a line cut by a kill is skipped."""
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        records = []
        for line in path.read_text(encoding='utf-8').splitlines():
            with suppress(ValueError):
                records.append(json.loads(line))
        yield records


def was_evaluated(work_dir: Path, epoch: int, iteration: int) -> bool:
    """Tell whether a work dir's logs hold the scores of an epoch, counted from 1, or of the iteration at its end.

    Which of the two numbers is logged with the scores is set by ``log_metric_by_epoch`` of mmengine's ``LoggerHook``.
    """
    records = chain.from_iterable(read_runs(work_dir))
    return any('loss' not in record and record.get('step') in (epoch, iteration) for record in records)


def read_curves(work_dir: Path) -> dict[str, dict[int, float]]:
    """Return losses and validation scores by name, each as values by iteration.

    From the first iteration of a run on, its values replace those of earlier runs: a resumed run continues the curve,
    a run that starts anew replaces it.
    """
    curves: dict[str, dict[int, float]] = {}
    for records in read_runs(work_dir):
        first = next((record['step'] for record in records if 'loss' in record), None)
        if first is not None:
            curves = {name: {i: v for i, v in points.items() if i < first} for name, points in curves.items()}
        iteration = 0
        for record in records:
            if 'loss' in record:
                iteration = record['step']
            for name, value in record.items():
                if ('loss' in record and 'loss' in name) or name in CURVES:
                    curves.setdefault(name, {})[iteration] = value
    return {name: points for name, points in curves.items() if points}


def plot_curves(work_dir: Path) -> Path | None:
    """Draw the curves of a work dir into ``curves.png`` there and return its path; None if nothing was logged yet."""
    curves = read_curves(work_dir)
    if not curves:
        return None

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout='constrained')
    loss_axes, score_axes = figure.subplots(1, 2, sharex=True)
    for name, points in curves.items():
        axes = score_axes if name in CURVES else loss_axes
        x, y = zip(*sorted(points.items()), strict=True)
        marker = 'o' if len(x) < 20 else None
        axes.plot(x, y, label=CURVES.get(name, name), linewidth=2 if name == 'loss' else 1, marker=marker)
    loss_axes.set(xlabel='iteration', ylabel='loss', title='training loss', ylim=(0, None))
    if any(name.startswith(ACCURACY) for name in curves):
        score_axes.set(xlabel='iteration', ylabel='accuracy (%)', title='validation accuracy', ylim=(0, 100))
    else:
        score_axes.set(xlabel='iteration', ylabel='AP', title='validation AP (0.50:0.95)', ylim=(0, 1))
    for axes in (loss_axes, score_axes):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize='small')
    path = work_dir / 'curves.png'
    FigureCanvasAgg(figure).print_png(str(path))
    return path
